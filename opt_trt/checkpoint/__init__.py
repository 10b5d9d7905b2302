"""TensorRT-LLM's checkpoint: names, shapes and bytes, read and written."""
