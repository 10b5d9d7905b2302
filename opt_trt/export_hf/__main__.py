"""`python -m opt_trt.export_hf`: rebuild a Hugging Face checkpoint from a TensorRT-LLM checkpoint."""

from opt_trt.commands import export_hf

if __name__ == "__main__":
    export_hf()
