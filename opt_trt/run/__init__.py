"""Continue prompts with an engine: prompts in, text or token ids out."""
