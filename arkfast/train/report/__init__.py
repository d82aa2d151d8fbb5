"""``arkfast report``: one page about a training run."""
