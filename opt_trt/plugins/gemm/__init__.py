"""Matrix products: the problem, and the tactics of a CPU and of a GPU."""
