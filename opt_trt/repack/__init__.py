"""The command `python -m opt_trt.repack`; its code is in `convert`."""
