"""Read a TensorRT-LLM checkpoint: its configuration, and the tensors of one rank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from opt_trt.checkpoint.packing import is_interleaved
from opt_trt.checkpoint.spec import packed_mode, tensor_spec
from opt_trt.checkpoint.writer import DTYPE_CODES, TensorSpec, refuse_differences
from opt_trt.errors import UserError, reason
from opt_trt.host.json_file import read_json
from opt_trt.host.safetensors_file import check_header
from opt_trt.model.config import ACTIVATIONS, ModelConfig
from opt_trt.quant import ALGORITHMS

CONFIG_NAME = "config.json"
OTHERS = {"build_config": "an engine", "model_type": "an original model"}  # other directories, by a key in config.json
QUANT_ALGOS = (None, *ALGORITHMS)
CONVERT_AGAIN = "convert the model again"


def rank_file(directory: Path, rank: int) -> Path:
    """Return the path of the file with the tensors of a rank."""
    return directory / f"rank{rank}.safetensors"


@contextmanager
def open_rank_file(path: Path, advice: str) -> Iterator[Any]:
    """Open a rank's safetensors file, of a checkpoint or an engine; `UserError` with `advice` if it cannot be read."""
    if not path.exists():
        raise UserError(f"expected {path}, found nothing there; {advice}")
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, MemoryError) as error:  # MemoryError: the file cannot be mapped
        raise UserError(f"{path} is truncated or not safetensors ({reason(error)}); {advice}") from error


def write_config(directory: Path, config: ModelConfig) -> None:
    """Write the checkpoint's `config.json`."""
    (directory / CONFIG_NAME).write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")


class Checkpoint:
    """An open rank of a checkpoint; its names, shapes and dtypes have been compared with its `config.json`."""

    def __init__(self, directory: Path | str, rank: int = 0, packed_sm: int | None = None) -> None:
        self.directory = Path(directory)
        self.config = read_config(self.directory, packed_sm)
        self.spec = tensor_spec(self.config, rank)
        self.path = rank_file(self.directory, rank)
        _check_rank_files(self.directory, self.config.mapping.world_size)
        refuse_differences(self.path, _header_problems(_read_header(self.path, rank), self.spec))

    def of_rank(self, rank: int) -> Checkpoint:
        """Return another rank of the same checkpoint."""
        return Checkpoint(self.directory, rank, self.config.target_sm)

    @property
    def nbytes(self) -> int:
        """The number of bytes of all tensors of the rank."""
        return sum(spec.nbytes for spec in self.spec.values())

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor, mapped from the file: pages that were read are in memory as long as the tensor exists."""
        with open_rank_file(self.path, CONVERT_AGAIN) as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor with its name, in the order in which the model uses them."""
        for name in self.spec:
            yield name, self.tensor(name)


def read_config(directory: Path | str, packed_sm: int | None = None) -> ModelConfig:
    """Read a checkpoint's `config.json`; refuse other architectures and kinds of OPT that are not supported.

    `packed_sm` is the GPU in whose layout the weights are packed, for a file that does not say it.
    """
    path = Path(directory) / CONFIG_NAME
    values = read_json(path)
    for key, what in OTHERS.items():
        if key in values and "architecture" not in values:
            raise UserError(f"{directory} is {what}; give a checkpoint written by convert_checkpoint.py")
    config = ModelConfig.from_dict(values, path)
    for key, found, supported in (
        ("architecture", config.architecture, ("OPTForCausalLM",)),
        ("hidden_act", config.hidden_act, ACTIVATIONS),
        ("quantization.quant_algo", config.quant_algo, QUANT_ALGOS),
        ("quantization.kv_cache_quant_algo", config.quantization.get("kv_cache_quant_algo"), (None,)),
    ):
        if found not in supported:
            wanted = " or ".join(map(repr, supported))
            raise UserError(f"{path} has {key} {found!r}, only {wanted} is supported; convert the model again")
    return config if packed_sm in (None, config.target_sm) else _with_target_sm(path, config, packed_sm)


def lacks_target_sm(config: ModelConfig) -> bool:
    """Return whether weights are packed for a GPU that is not named; TensorRT-LLM's converter leaves it out."""
    return packed_mode(config) is not None and config.target_sm is None


def check_target_sm(directory: Path, config: ModelConfig) -> None:
    """Refuse packed weights if the configuration does not name the GPU."""
    if lacks_target_sm(config):
        raise UserError(
            f"{directory / CONFIG_NAME} does not say which GPU its weights are packed for; add "
            '"target_sm": 80 to it (90 if it was converted on a Hopper GPU), or give --packed_sm 80 to the command'
        )


def _with_target_sm(path: Path, config: ModelConfig, packed_sm: int) -> ModelConfig:
    """Return the configuration with the GPU that it lacks; `UserError` if it lacks none."""
    if packed_mode(config) is None:
        raise UserError(f"{path.parent} holds no packed weights; drop --packed_sm {packed_sm}")
    if config.target_sm is not None:
        raise UserError(
            f"{path} says that its weights are packed for SM {config.target_sm}; drop --packed_sm {packed_sm}"
        )
    is_interleaved(packed_sm)  # names the GPUs whose layout is known
    return replace(config, target_sm=packed_sm)


def _read_header(path: Path, rank: int) -> dict[str, TensorSpec]:
    """Return the tensors of a rank file; refuse one whose metadata name another rank. TensorRT-LLM's name none."""
    dtypes = {code: dtype for dtype, code in DTYPE_CODES.items()}
    with open_rank_file(path, CONVERT_AGAIN) as file:
        found = (file.metadata() or {}).get("rank", str(rank))
        if found != str(rank):
            raise UserError(f"{path} holds the tensors of rank {found}; put it back under its own name")
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: TensorSpec(tuple(part.get_shape()), dtypes.get(part.get_dtype(), part.get_dtype()))
            for name, part in parts.items()
        }


def _check_rank_files(directory: Path, world_size: int) -> None:
    expected = {rank_file(directory, rank).name for rank in range(world_size)}
    found = {path.name for path in directory.glob("rank*.safetensors")}
    if found != expected:
        raise UserError(
            f"{directory / CONFIG_NAME} has world_size {world_size}, but the rank files there are "
            f"{', '.join(sorted(found)) or 'none'}; convert the model again"
        )


def _header_problems(found: dict[str, TensorSpec], expected: dict[str, TensorSpec]) -> list[str]:
    wrong = [
        f"{name} is {found[name]}, expected {spec}"
        for name, spec in expected.items()
        if name in found and found[name] != spec
    ]
    missing = [f"{name} is missing" for name in expected if name not in found]
    return wrong + missing + [f"{name} is unexpected" for name in found if name not in expected]
