"""One OPT as data: its sizes, its ranks, and how each tensor is cut for a rank."""
