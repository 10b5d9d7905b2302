"""Tests that start ranks with mpirun."""
