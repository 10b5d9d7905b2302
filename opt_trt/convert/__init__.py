"""Commands that turn one form of a model into another: convert, export_hf, repack."""
