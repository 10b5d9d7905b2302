"""The ground of all GPU kernels: the GPU, buckets of tokens, launches and captured graphs."""
