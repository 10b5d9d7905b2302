"""Turn one form of a model into another: the commands convert, export_hf and repack."""
