"""Words for Gymnasium's games, and games of our own."""
