"""The ground of all CPU kernels: instruction sets and vectors of lanes."""
