"""TensorRT-LLM's checkpoint format: names, shapes and bytes of tensors, and how they are read and written."""
