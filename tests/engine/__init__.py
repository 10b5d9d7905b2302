"""Tests that need a C++ compiler."""
