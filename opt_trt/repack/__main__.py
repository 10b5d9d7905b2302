"""`python -m opt_trt.repack`: pack the weights of a packed checkpoint for another GPU."""

from opt_trt.commands import repack

if __name__ == "__main__":
    repack()
