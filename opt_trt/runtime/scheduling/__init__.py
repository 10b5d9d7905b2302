"""Decide which sequences take part in a step, and where their keys and values lie."""
