"""Check every tactic against the reference, time it, and choose the winners."""
