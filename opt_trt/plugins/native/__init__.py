"""Compile the C++ plugin library, and load it."""
