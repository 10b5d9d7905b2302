"""Build an engine: choose tactics, compile programs, lay out weights."""
