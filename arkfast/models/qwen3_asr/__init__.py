"""Qwen3-ASR on Transformers' own implementation, as a model that can be asked: how its checkpoints load, what it hears and reads."""
