"""Small random OPT models in Hugging Face format, written in every layout that hubs use."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
FILES = {"safetensors": "model{}.safetensors", "bin": "pytorch_model{}.bin", "legacy": "pytorch_model{}.bin"}


@dataclass
class Model:
    """A model to write; a test may damage its `config` and `tensors` before `write`."""

    vocab: int = 48
    hidden: int = 16
    width: int = 16
    layers: int = 2
    ffn: int = 40
    positions: int = 12
    pre_norm: bool = True
    dtype: torch.dtype = torch.float32
    config: dict[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = {
            "model_type": "opt", "architectures": ["OPTForCausalLM"], "activation_function": "relu",
            "vocab_size": self.vocab, "hidden_size": self.hidden, "word_embed_proj_dim": self.width,
            "num_hidden_layers": self.layers, "num_attention_heads": 4, "ffn_dim": self.ffn,
            "max_position_embeddings": self.positions, "do_layer_norm_before": self.pre_norm,
            "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1,
        } | self.config  # fmt: skip
        self.tensors = self._random() | self.tensors

    def _random(self) -> Tensors:
        generator = torch.Generator().manual_seed(0)
        return {
            f"model.{name}": torch.randn(*shape, generator=generator).mul(0.1).to(self.dtype)
            for name, shape in self._shapes().items()
        }

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, ffn = self.hidden, self.ffn
        shapes: dict[str, tuple[int, ...]] = {
            "decoder.embed_tokens.weight": (self.vocab, self.width),
            "decoder.embed_positions.weight": (self.positions + 2, hidden),
        }
        if self.width != hidden:
            shapes |= {"decoder.project_in.weight": (hidden, self.width)}
            shapes |= {"decoder.project_out.weight": (self.width, hidden)}
        modules: dict[str, tuple[int, ...]] = {}
        for layer in range(self.layers):
            prefix = f"decoder.layers.{layer}."
            modules |= {f"{prefix}self_attn.{p}_proj": (hidden, hidden) for p in ("q", "k", "v", "out")}
            modules |= {f"{prefix}{norm}": (hidden,) for norm in ("self_attn_layer_norm", "final_layer_norm")}
            modules |= {f"{prefix}fc1": (ffn, hidden), f"{prefix}fc2": (hidden, ffn)}
        if self.pre_norm and not self.config.get("_remove_final_layer_norm"):
            modules["decoder.final_layer_norm"] = (hidden,)
        for module, shape in modules.items():
            shapes |= {f"{module}.weight": shape, f"{module}.bias": shape[:1]}
        return shapes

    def write(self, directory: Path, kind: str = "safetensors", shards: int = 1, prefix: str = "model.") -> Path:
        """Write the directory; `prefix` replaces `model.` in the names of tensors."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.config))
        tensors = {prefix + n.removeprefix("model.") if "decoder." in n else n: t for n, t in self.tensors.items()}
        if shards == 1:
            save(tensors, directory / FILES[kind].format(""), kind)
            return directory
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            name = FILES[kind].format(f"-{shard + 1:05}-of-{shards:05}")
            part = dict(list(tensors.items())[shard::shards])
            save(part, directory / name, kind)
            weight_map |= dict.fromkeys(part, name)
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / (FILES[kind].format("") + ".index.json")).write_text(json.dumps(index))
        return directory


def save(tensors: Tensors, path: Path, kind: str) -> None:
    """Write one file of weights."""
    if kind == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "bin")
