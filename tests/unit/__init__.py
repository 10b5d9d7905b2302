"""Tests that need torch on a CPU only; folders mirror the package."""
