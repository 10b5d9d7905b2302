"""Turn requests into tokens: schedule sequences, step a decoder, choose each next token, keep ranks in step."""
