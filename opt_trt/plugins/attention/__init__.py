"""Attention over the paged KV cache: the problem, and the tactics of a CPU and of a GPU."""
