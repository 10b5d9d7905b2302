"""OPT from checkpoint to measured text, with TensorRT-LLM's commands, flags and checkpoint format."""

__version__ = "0.1.0"
