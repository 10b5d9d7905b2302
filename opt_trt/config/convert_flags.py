"""The flags of `convert_checkpoint.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opt_trt.config.flags import (
    DTYPE_SPELLINGS,
    INPUT,
    LOG_LEVELS,
    OUTPUT,
    QUANTIZATION,
    RANKS,
    Logged,
    Refusal,
    check_required,
    flag,
)
from opt_trt.errors import UserError
from opt_trt.model.config import DTYPES

PRECISIONS = ("int8", "int4")
RENAMED = "it has another name here"
NO_SHARING = "the head is stored beside the embedding table, as newer releases of TensorRT-LLM store it"
OTHER_SCRIPT = "it belongs to hf_opt_convert.py, whose files TensorRT-LLM no longer reads"
FASTER_TRANSFORMER = {  # flags of hf_opt_convert.py, with one dash, and ours
    "-saved_dir": "--output_dir", "-o": "--output_dir", "-in_file": "--model_dir", "-i": "--model_dir",
    "-infer_gpu_num": "--tp_size", "-i_g": "--tp_size", "-trained_gpu_num": "--model_dir", "-t_g": "--model_dir",
    "-processes": "--workers", "-p": "--workers", "-weight_data_type": "--dtype",
}  # fmt: skip


@dataclass(frozen=True)
class ConvertConfig(Logged):
    """Convert an OPT checkpoint to a TensorRT-LLM checkpoint; no GPU and no tensorrt_llm needed."""

    model_dir: str | None = flag(
        None, "directory of the original checkpoint: Hugging Face, metaseq, FlagAI or Alpa", group=INPUT,
        required="the directory of the original checkpoint",
    )  # fmt: skip
    model_type: str = flag(
        "opt", "the model in it; blip2: convert the OPT inside a BLIP-2", choices=("opt", "blip2"), group=INPUT
    )
    md5_manifest: str | None = flag(
        None, "published md5 sums of files in --model_dir, as md5sum prints them or csv with the header shard,md5sum",
        group=INPUT,
    )  # fmt: skip
    output_dir: str = flag("tllm_checkpoint", "directory to write; appears only when it is whole", group=OUTPUT)
    dtype: str = flag(
        "float16", "type the weights are stored in", choices=DTYPES, spellings=DTYPE_SPELLINGS, group=OUTPUT
    )
    use_parallel_embedding: bool = flag(
        False, "shard the embedding tables over the ranks (recorded in config.json)", group=RANKS
    )
    embedding_sharding_dim: int = flag(
        0, "axis the tables are sharded on: 0 vocabulary, 1 hidden", choices=("0", "1"), group=RANKS
    )
    tp_size: int = flag(1, "ranks that share every layer", group=RANKS)
    pp_size: int = flag(1, "stages that share the layers one after another", group=RANKS)
    pp_layers: tuple[int, ...] | None = flag(
        None, "layers of each stage, one number per stage; default: as even as possible", nargs="+", group=RANKS
    )
    use_weight_only: bool = flag(
        False, "quantize the linear weights of the layers, each rank's part separately", group=QUANTIZATION
    )
    weight_only_precision: str | None = flag(
        None, "quant mode of --use_weight_only; default: int8", choices=PRECISIONS, bare="int8", group=QUANTIZATION
    )
    target_sm: int | None = flag(
        None,
        "GPU to pack quantized weights for, 80 = compute capability 8.0; default: the GPU of this machine, else 80",
        group=QUANTIZATION,
    )
    defer_quantization: bool = flag(
        False, "store weights as --dtype, and let the builder quantize them: such a checkpoint fits every GPU",
        group=QUANTIZATION,
    )  # fmt: skip
    report: str | None = flag(
        None,
        "write how quantizing changes each matrix of each rank: PATH/report.json and .svg, or PATH.json and PATH.svg",
        group=QUANTIZATION,
    )
    workers: int = flag(1, "threads; each holds one tensor in memory")
    log_level: str = flag("info", "what to print; verbose adds tracebacks", choices=LOG_LEVELS)

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "--model_dir opt-125m --output_dir work/checkpoint",
        "--model_dir opt-125m --tp_size 2 --use_weight_only --weight_only_precision int8 --output_dir work/int8",
    )
    REFUSED: ClassVar[dict[str, Refusal]] = {
        "world_size": Refusal(RENAMED, ("1",), advice="give --tp_size"),
        "use_embedding_sharing": Refusal(NO_SHARING),
        "use_prompt_tuning": Refusal("prompt tables are not supported"),
        "logits_dtype": Refusal("the checkpoint says float32, as TensorRT-LLM's does", ("float32",),
                                advice="give it to build.py"),
        "load_by_shard": Refusal("weights are always read tensor by tensor", ("",)),
        "load_model_on_cpu": Refusal("weights are never loaded to a GPU", ("",)),
    } | {name: Refusal(OTHER_SCRIPT, advice=f"give {ours}") for name, ours in FASTER_TRANSFORMER.items()}  # fmt: skip

    def __post_init__(self) -> None:
        check_required(self)
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
        if self.embedding_sharding_dim and not self.use_parallel_embedding:
            raise UserError(
                f"--embedding_sharding_dim {self.embedding_sharding_dim} says how to shard the tables, but "
                "--use_parallel_embedding is not given; give both or none"
            )
