"""Directories that hold something else than a model's weights: what it is, and how a model is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from opt_trt.errors import UserError
from opt_trt.host.files import check_regular, nested
from opt_trt.sources import alpa, flagai
from opt_trt.sources.hf import LAYOUTS

TRAINER = (
    "optimizer*.pt", "scheduler*.pt", "rng_state*", "scaler.pt", "training_args.bin", "trainer_state.json",
    "optimizer*.bin", "scheduler*.bin", "random_states_*.pkl",
)  # fmt: skip
LISTED = 3  # the number of directories that an error names
ORIGINAL = "give the model of which it was made, with PyTorch's weights (safetensors or .bin)"
ADAPTER = ("adapter_config.json", "adapter_model*")


@dataclass(frozen=True)
class Kind:
    """Files by whose names, or patterns of names, a directory without weights is known for what it is."""

    files: tuple[str, ...]
    what: str
    advice: str


KINDS = (  # the first that matches is named: a trainer's state lies beside all the others
    Kind(
        ADAPTER,
        "an adapter",
        "merge it into its base model first (peft's merge_and_unload, then save_pretrained) and give the merged model",
    ),
    Kind(
        ("pytorch_model_fsdp*", "*.distcp", "*/*.distcp"),
        "the shards of FSDP",
        "merge them first (accelerate merge-weights) and give the merged model",
    ),
    Kind(
        ("zero_to_fp32.py", "global_step*", "*zero_pp_rank_*", "mp_rank_*_model_states.pt"),
        "a checkpoint of DeepSpeed's ZeRO",
        "run zero_to_fp32.py there, which merges it, and give the merged model",
    ),
    Kind(
        ("quantize_config.json", "quant_config.json", "gptq_model*", "*-4bit-*"),
        "a model that is quantized already",
        "give the plain model: its weights are quantized here",
    ),
    Kind(TRAINER, "the state of a trainer, not a model", "give the directory with the model's weights"),
    Kind(
        ("*.ckpt", "*.pth"),
        "a trainer's file with a model in it",
        "save its state dict as pytorch_model.bin beside the model's config.json",
    ),
    Kind(("*.gguf",), "a model of llama.cpp", ORIGINAL),
    Kind(("flax_model*.msgpack",), "a model of Flax", ORIGINAL),
    Kind(("tf_model*.h5",), "a model of TensorFlow", ORIGINAL),
    Kind(("*.onnx",), "a model of ONNX", ORIGINAL),
    Kind(("model.bin",), "a model of CTranslate2", ORIGINAL),
)

OTHER_FILES = tuple(pattern for kind in KINDS for pattern in kind.files)


def refuse_lookalike(directory: Path) -> None:
    """Refuse a directory without a model's weights if it is known what it is; `UserError` says what to do."""
    if _holds_weights(directory):
        return
    for name in ("config.json", *LAYOUTS):
        check_regular(directory / name)
    for kind in KINDS:
        if found := _first(directory, kind.files):
            raise UserError(f"{directory} holds {kind.what} ({found.name}); {kind.advice}")
    if models := nested(directory, _holds_weights):
        listed = ", ".join(map(str, models[:LISTED])) + f" and {len(models) - LISTED} more" * (len(models) > LISTED)
        few = "it" if len(models) == 1 else "one of them"
        raise UserError(f"{directory} holds directories of models; give {few}: {listed}")


def beside_model(directory: Path) -> tuple[str, ...]:
    """Return a note for the user if there is an adapter beside a model, for it is not applied."""
    found = _first(directory, ADAPTER)
    if found is None:
        return ()
    return (f"{directory}: the adapter beside the model ({found.name}) is not applied; merge it first if it is wanted",)


def _holds_weights(directory: Path) -> bool:
    if any((directory / name).exists() for name in LAYOUTS):
        return True
    others = (path for path in directory.glob("*.pt") if not any(map(path.match, OTHER_FILES)))
    return any(others) or flagai.recognizes(directory) or alpa.recognizes(directory)


def _first(directory: Path, patterns: tuple[str, ...]) -> Path | None:
    return next((path for pattern in patterns for path in sorted(directory.glob(pattern))), None)
