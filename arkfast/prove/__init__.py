"""``arkfast prove``: one command that shows on a user's own checkpoints whether this library computes what it should."""
