"""Mutated inputs for every reader: none ends in a traceback, a signal, a hang or a full memory."""
