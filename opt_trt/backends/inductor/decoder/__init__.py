"""Load a built engine and compute its steps."""
