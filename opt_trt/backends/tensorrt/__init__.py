"""TensorRT engines, built with the library's own network API."""
