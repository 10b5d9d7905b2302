"""Tests of triton's kernels, which a CPU interprets."""
