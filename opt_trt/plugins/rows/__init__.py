"""The rows plugin: operations that take each row of activations by itself."""
