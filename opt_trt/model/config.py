"""The configuration of a model, with TensorRT-LLM's keys, as the `config.json` of a checkpoint holds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from opt_trt.errors import UserError, divide_exactly
from opt_trt.host.json_file import check_types
from opt_trt.model.mapping import Mapping

DTYPES = ("float32", "bfloat16", "float16")
ACTIVATIONS = ("relu", "gelu")  # `hidden_act`: OPT's and Galactica's
ENGINE_ACTIVATION = ACTIVATIONS[0]  # the only one that our own engines compute
SIZES = (
    "num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip
MAX_LAYERS = 1000  # more than any model has; a damaged number would fill the memory with tables of names
CHOICES: dict[str, tuple[Any, ...]] = {
    "dtype": DTYPES,
    "logits_dtype": ("float32", "float16"),
    "position_embedding_type": ("learned_absolute",),
    "embedding_sharding_dim": (0, 1),
}


@dataclass(frozen=True)
class ModelConfig:
    """The hyper-parameters of one OPT, in a form that is the same for all sources.

    The keys up to `do_layer_norm_before` are TensorRT-LLM's. The keys below are ours: TensorRT-LLM's reader warns about
    unknown top-level keys and continues. `max_position_embeddings` does not count the two offset rows of the source.
    `end_token_ids` stays out of the file if it is None, so that the bytes of common checkpoints are TensorRT-LLM's.
    """

    architecture: str
    dtype: str
    num_hidden_layers: int
    num_attention_heads: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    do_layer_norm_before: bool
    logits_dtype: str = "float32"
    hidden_act: str = "relu"
    norm_epsilon: float = 1e-5
    position_embedding_type: str = "learned_absolute"
    quantization: dict[str, Any] = field(default_factory=lambda: {"quant_algo": None})
    mapping: Mapping = field(default_factory=Mapping)
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = 0
    pp_layers: tuple[int, ...] | None = None  # layers of each pipeline stage; None: as even as possible
    remove_final_layer_norm: bool = False
    bos_token_id: int = 2
    eos_token_id: int = 2
    pad_token_id: int = 1
    target_sm: int | None = None  # the GPU for which weights are packed: 80 is compute capability 8.0
    defer_quantization: bool = False  # the weights are stored in `dtype`, and the builder quantizes them
    end_token_ids: tuple[int, ...] | None = None  # tokens that end an output; None: `eos_token_id` alone

    def __post_init__(self) -> None:
        for name in SIZES:
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, found {getattr(self, name)}; convert the model again")
        if self.num_hidden_layers > MAX_LAYERS:
            layers = self.num_hidden_layers
            raise UserError(f"num_hidden_layers must be at most {MAX_LAYERS}, found {layers}; convert the model again")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} must be {' or '.join(map(str, allowed))}, found {getattr(self, name)!r}")
        for token_id in (self.eos_token_id, *(self.end_token_ids or ())):
            if not 0 <= token_id < self.vocab_size:
                raise UserError(f"eos_token_id must be in the vocabulary of {self.vocab_size}, found {token_id}")
        divide_exactly(self.hidden_size, self.num_attention_heads, "hidden_size over num_attention_heads")
        if self.pp_layers is not None:
            self._check_stages(self.pp_layers)

    @property
    def head_size(self) -> int:
        """The number of features of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def local_heads(self) -> int:
        """The number of attention heads of one tensor-parallel rank."""
        return divide_exactly(self.num_attention_heads, self.mapping.tp_size, "num_attention_heads over tp_size")

    @property
    def has_final_layer_norm(self) -> bool:
        """True if the model ends in `ln_f`: pre-norm models do, unless they were fine-tuned without it."""
        return self.do_layer_norm_before and not self.remove_final_layer_norm

    @property
    def quant_algo(self) -> str | None:
        """TensorRT-LLM's name of the weight-only mode; None if weights are not quantized."""
        algorithm: str | None = self.quantization.get("quant_algo")
        return algorithm

    def stage_layers(self, pp_rank: int) -> range:
        """Return the layers of a pipeline stage."""
        if self.pp_layers is None:
            return self.mapping.layers(self.num_hidden_layers, pp_rank)
        start = sum(self.pp_layers[:pp_rank])
        return range(start, start + self.pp_layers[pp_rank])

    def _check_stages(self, counts: tuple[int, ...]) -> None:
        stages, layers = self.mapping.pp_size, self.num_hidden_layers
        if len(counts) != stages or sum(counts) != layers or min(counts) < 1:
            raise UserError(
                f"pp_layers must be {stages} numbers of at least 1 (pp_size) that add up to {layers} layers, "
                f"found {' '.join(map(str, counts))}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values in the order of the fields."""
        values = asdict(self)
        if self.end_token_ids is None:
            del values["end_token_ids"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: Path | str) -> ModelConfig:
        """Read the values that `to_dict` or TensorRT-LLM's converter wrote; null stands for a missing value.

        `where` names the file in errors.
        """
        check_types(cls, values, where)
        values = {k: v for k, v in values.items() if v is not None}
        known = {f.name: f for f in fields(cls)}
        required = ("architecture", "dtype", "num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
        missing = [n for n in (*required, "max_position_embeddings", "do_layer_norm_before") if n not in values]
        if missing:
            raise UserError(f"{where} lacks {', '.join(missing)}; convert the model again with convert_checkpoint.py")
        kept = {k: v for k, v in values.items() if k in known}
        kept.setdefault("intermediate_size", 4 * values["hidden_size"])
        kept["quantization"] = values.get("quantization") or {"quant_algo": None}
        for name in ("pp_layers", "end_token_ids"):
            if name in kept:
                kept[name] = _integers(name, kept[name], where)
        mapping = values.get("mapping", {})
        check_types(Mapping, mapping, where)
        try:
            kept["mapping"] = Mapping(**{f.name: mapping.get(f.name, 1) for f in fields(Mapping)})
            return cls(**kept)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def _integers(name: str, values: Any, where: Path | str) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise UserError(f"{where}: {name} must be a list of integers, found {values!r}; write the file again")
    return tuple(values)
