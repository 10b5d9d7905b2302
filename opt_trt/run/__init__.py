"""`run.py`: prompts in, text or token ids out."""
