"""A run in progress: what it holds, its folder, its curves, and how it is interrupted."""
