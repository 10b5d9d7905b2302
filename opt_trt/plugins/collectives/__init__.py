"""Sums, gathers and messages between the ranks of an engine."""
