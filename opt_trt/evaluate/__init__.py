"""How good and how fast an engine is: summaries scored beside Hugging Face's own."""
