"""Print the contents of a checkpoint, an engine or an original model, or the differences of two checkpoints."""
