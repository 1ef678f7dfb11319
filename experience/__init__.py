"""What the agent lived through and what it made of it: traces, insights, and the store of both."""
