"""Compile a program with PyTorch's AOTInductor for a CPU or a GPU."""
