"""Convert an original OPT checkpoint to a TensorRT-LLM checkpoint."""

from opt_trt.commands import convert

if __name__ == "__main__":
    convert()
