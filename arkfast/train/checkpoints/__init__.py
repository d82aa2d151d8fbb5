"""A run's checkpoints: the folder they live in, the tensors of a resume, when they are written, and the models taken out of them."""
