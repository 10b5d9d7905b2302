"""The command `python -m opt_trt.export_hf`; its code is in `convert`."""
