"""Training: the loop around a stage's step, its optimizer, its checkpoints and its log."""
