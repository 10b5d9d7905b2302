"""The flags of `convert_checkpoint.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opt_trt.config.flags import LOG_LEVELS, Logged, Refusal, flag
from opt_trt.errors import UserError
from opt_trt.model.config import DTYPES

PRECISIONS = ("int8", "int4")


@dataclass(frozen=True)
class ConvertConfig(Logged):
    """Convert an OPT checkpoint to a TensorRT-LLM checkpoint; no GPU and no tensorrt_llm needed."""

    model_dir: str | None = flag(None, "directory of the original checkpoint: Hugging Face, metaseq, FlagAI or Alpa")
    model_type: str = flag("opt", "the model in it; blip2: convert the OPT inside a BLIP-2", choices=("opt", "blip2"))
    md5_manifest: str | None = flag(
        None, "published md5 sums of files in --model_dir, as md5sum prints them or csv with the header shard,md5sum"
    )
    output_dir: str = flag("tllm_checkpoint", "directory to write; appears only when it is whole")
    dtype: str = flag("float16", "type the weights are stored in", choices=DTYPES)
    use_parallel_embedding: bool = flag(False, "shard the embedding tables over the ranks (recorded in config.json)")
    embedding_sharding_dim: int = flag(0, "axis the tables are sharded on: 0 vocabulary, 1 hidden", choices=("0", "1"))
    tp_size: int = flag(1, "ranks that share every layer")
    pp_size: int = flag(1, "stages that share the layers one after another")
    pp_layers: tuple[int, ...] | None = flag(
        None, "layers of each stage, one number per stage; default: as even as possible", nargs="+"
    )
    use_weight_only: bool = flag(False, "quantize the linear weights of the layers, each rank's part separately")
    weight_only_precision: str | None = flag(
        None, "quant mode of --use_weight_only; default: int8", choices=PRECISIONS, bare="int8"
    )
    target_sm: int | None = flag(
        None,
        "GPU to pack quantized weights for, 80 = compute capability 8.0; default: the GPU of this machine, else 80",
    )
    defer_quantization: bool = flag(
        False, "store weights as --dtype, and let the builder quantize them: such a checkpoint fits every GPU"
    )
    report: str | None = flag(
        None,
        "write how quantizing changes each matrix of each rank: PATH/report.json and .svg, or PATH.json and PATH.svg",
    )
    workers: int = flag(1, "threads; each holds one tensor in memory")
    log_level: str = flag("info", "what to print; verbose adds tracebacks", choices=LOG_LEVELS)

    REFUSED: ClassVar[dict[str, Refusal]] = {}

    def __post_init__(self) -> None:
        if self.model_dir is None:
            raise UserError("--model_dir is required: the directory of the original checkpoint")
        for name in ("tp_size", "pp_size", "workers"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, found {getattr(self, name)}")
        for name, unset in (("weight_only_precision", None), ("target_sm", None), ("defer_quantization", False)):
            if getattr(self, name) is not unset and not self.use_weight_only:
                raise UserError(f"--{name} says how to quantize, but --use_weight_only is not given; give both or none")
        if self.report is not None and not self.use_weight_only:
            raise UserError(
                "--report tells of quantized weights, but --use_weight_only is not given; give both or none"
            )
