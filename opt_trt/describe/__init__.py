"""What a checkpoint, an engine or a Hugging Face model holds, for reading."""
