"""Unit tests of `examples/`."""
