"""`python -m opt_trt.describe`: print what a directory holds, or what two checkpoints differ in."""

from opt_trt.commands import describe

if __name__ == "__main__":
    describe()
