"""A packed checkpoint for another GPU."""
