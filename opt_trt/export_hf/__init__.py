"""A checkpoint back to Hugging Face's format."""
