"""ARK-ASR: configuration, audio encoder, model, processor, pipeline, strict loading and new checkpoints. Importing it registers nothing."""
