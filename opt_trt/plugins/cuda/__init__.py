"""What all GPU kernels need: the GPU, buckets of tokens, launches and captured graphs."""
