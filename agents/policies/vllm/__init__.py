"""vLLM as a policy, and as a teacher."""
