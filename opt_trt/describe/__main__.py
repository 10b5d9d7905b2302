"""`python -m opt_trt.describe`: print the contents of a directory, or the differences of two checkpoints."""

from opt_trt.commands import describe

if __name__ == "__main__":
    describe()
