"""`python -m opt_trt COMMAND`: every command by its name."""

from opt_trt.commands import main

if __name__ == "__main__":
    main()
