"""Choose the next token: penalties, filters, draws, beams, contrastive search."""
