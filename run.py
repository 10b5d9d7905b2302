"""Generate text with an engine."""

from opt_trt.commands import run

if __name__ == "__main__":
    run()
