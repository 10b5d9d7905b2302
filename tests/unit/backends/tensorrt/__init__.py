"""Tests of the backend `tensorrt`, without a GPU."""
