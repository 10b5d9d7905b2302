"""`python -m opt_trt.repack`: lay the weights of a packed checkpoint out for another GPU."""

from opt_trt.commands import repack

if __name__ == "__main__":
    repack()
