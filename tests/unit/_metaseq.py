"""Write a small model of `_models` as metaseq does: every variant of files, with the objects that training leaves."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tests.unit._models import Model, Tensors

RENAMED = {"final_layer_norm": "layer_norm", "project_in": "project_in_dim", "project_out": "project_out_dim"}
COLUMNS = ("self_attn.out_proj.weight", "fc2.weight")
ROWS = ("embed_tokens.weight", "fc1.weight", "fc1.bias", "output_projection.weight")
ROWS += tuple(f"self_attn.{p}_proj.{kind}" for p in "kvq" for kind in ("weight", "bias"))
LAYER_ORDER = [
    f"{module}.{kind}"
    for module in ("self_attn.qkv_proj", "self_attn.out_proj", "self_attn_layer_norm", "fc1", "fc2", "final_layer_norm")
    for kind in ("weight", "bias")
]
EMBEDDINGS = ["decoder.embed_tokens.weight", "decoder.embed_positions.weight"]
NORM = ["decoder.layer_norm.weight", "decoder.layer_norm.bias"]
FOREIGN = {  # modules of the classes that training pickles; they need not be installed
    "omegaconf.dictconfig": "DictConfig", "omegaconf.nodes": "AnyNode", "omegaconf.base": "ContainerMetadata",
    "metaseq.data.iterators": "StreamingEpochBatchIterator", "metaseq.dataclass.constants": "DDP_BACKEND_CHOICES",
}  # fmt: skip


@dataclass
class Metaseq:
    """The way to write a model; `damage` is called with part, shard and object before each file is saved."""

    model: Model
    parts: int = 1
    shards: int = 1
    fused: bool = True
    layout: str = "named"  # one: all tensors in one vector; layers: one vector per layer and one for the rest
    metadata: bool = False
    settings: str = "cfg"  # the place of the hyper-parameters: cfg, dict, args, or "" for none
    name: str = "reshard{part}{shard}.pt"
    stated: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> Path:
        """Write the files, the last one first."""
        directory.mkdir(parents=True, exist_ok=True)
        for part in reversed(range(self.parts)):
            for shard in reversed(range(self.shards)):
                with foreign_classes() as classes:
                    torch.save(self.contents(part, shard, classes), directory / self.file(part, shard))
        return directory

    def file(self, part: int, shard: int = 0) -> str:
        """Return the name of a file."""
        numbers = {"part": f"-model_part-{part}" * (self.parts > 1), "shard": f"-shard{shard}" * (self.shards > 1)}
        return self.name.format(**numbers)

    def contents(self, part: int, shard: int, classes: dict[str, type]) -> dict[str, Any]:
        """Return the object of one file."""
        tensors = self.part(part)
        top: dict[str, Any] = {"criterion": None, "optimizer_history": [{"lr_scheduler_state": {"best": 2.5}}]}
        top |= {"extra_state": {"train_iterator": made(classes["StreamingEpochBatchIterator"], epoch=1)}}
        if self.layout != "named":
            vectors = self.vectors(tensors)
            tensors = {key: self.cut(torch.cat([t.flatten() for t in v.values()]), shard) for key, v in vectors.items()}
            if self.metadata:
                top["shard_metadata"] = self.shard_metadata(vectors)
            top["last_optimizer_state"] = {"state": {0: {"exp_avg": torch.zeros(3)}}}
        top["model"] = OrderedDict(tensors) | {"decoder.version": torch.tensor([3.0])}
        return top | self.training_settings(classes)

    def training_settings(self, classes: dict[str, type]) -> dict[str, Any]:
        """Return `cfg`, as OmegaConf's object or as a plain dictionary, or `args`."""
        from argparse import Namespace

        model = self.model
        values = {
            "_name": "transformer_lm_megatron", "decoder_embed_dim": model.hidden, "decoder_layers": model.layers,
            "decoder_ffn_embed_dim": model.ffn, "decoder_attention_heads": 4, "activation_fn": "relu",
            "max_target_positions": model.positions, "decoder_normalize_before": False,
            "share_decoder_input_output_embed": True,
        } | self.stated  # fmt: skip
        if self.settings == "cfg":
            backend = made(classes["DDP_BACKEND_CHOICES"])
            inner = container(classes, values | {"ddp_backend": backend})
            return {"cfg": container(classes, {"model": inner, "common": container(classes, {"fp16": True})})}
        if self.settings == "dict":
            return {"cfg": {"model": Namespace(**values)}, "args": None}
        return {"cfg": None, "args": Namespace(**values)} if self.settings else {}

    def part(self, part: int) -> Tensors:
        """Return the named tensors of a part, in the order of the module: embeddings, layers, layer norm."""
        cut = {name: self.slice(name, tensor, part) for name, tensor in renamed(self.model.tensors).items()}
        if self.fused:
            for layer in range(self.model.layers):
                for kind in ("weight", "bias"):
                    prefix = f"decoder.layers.{layer}.self_attn."
                    blocks = [cut.pop(f"{prefix}{p}_proj.{kind}") for p in "kvq"]
                    cut[f"{prefix}qkv_proj.{kind}"] = torch.cat(blocks)
        return cut

    def slice(self, name: str, tensor: torch.Tensor, part: int) -> torch.Tensor:
        axis = 0 if name.endswith(ROWS) else 1 if name.endswith(COLUMNS) else None
        return tensor.clone() if axis is None else tensor.chunk(self.parts, axis)[part].clone()

    def vectors(self, tensors: Tensors) -> dict[str, Tensors]:
        """Return the names of the tensors in each flat vector, in order."""
        layers = [[f"decoder.layers.{n}.{name}" for name in LAYER_ORDER] for n in range(self.model.layers)]
        names = {"flat_param_0": EMBEDDINGS + NORM}
        names |= {f"decoder.layers.{layer}.flat_param_0": keys for layer, keys in enumerate(layers)}
        if self.layout == "one":
            names = {"flat_param_0": [*EMBEDDINGS, *chain.from_iterable(layers), *NORM]}
        return {key: {name: tensors[name] for name in order} for key, order in names.items()}

    def cut(self, vector: torch.Tensor, shard: int) -> torch.Tensor:
        """Return a shard of a vector; zeros fill the last ones."""
        length = math.ceil(len(vector) / self.shards)
        piece = vector[shard * length : (shard + 1) * length]
        return torch.cat([piece, torch.zeros(length - len(piece), dtype=vector.dtype)])

    def shard_metadata(self, vectors: dict[str, Tensors]) -> dict[str, Any]:
        modules = []
        for key, tensors in vectors.items():
            path = key.removesuffix("flat_param_0").removesuffix(".")
            names = [name.removeprefix(path).removeprefix(".") for name in tensors]
            shapes = [tensor.shape for tensor in tensors.values()]
            params = {"names": names, "shapes": shapes, "numels": [t.numel() for t in tensors.values()], "padding": 0}
            modules.append({"fsdp_path": path, "params": {"flat_param_0": params}, "shared_param_info": []})
        return {"param_metadata": modules, "buffer_names": ["decoder.version"]}


def renamed(tensors: Tensors) -> Tensors:
    """Return metaseq's name for Hugging Face's; it renames the layer norm of the model, not those of layers."""
    found = {}
    for name, tensor in tensors.items():
        words = name.removeprefix("model.").split(".")
        if words[0] == "lm_head":
            words = ["decoder", "output_projection", "weight"]
        if words[1] in RENAMED:
            words[1] = RENAMED[words[1]]
        found[".".join(words)] = tensor
    return found


def made(cls: type, **state: Any) -> Any:
    """Return an object with this state."""
    value = cls()
    value.__dict__.update(state)
    return value


def container(classes: dict[str, type], values: dict[str, Any]) -> Any:
    """Return a DictConfig: nodes in `_content`, each with its `_val`."""
    nodes: dict[str, Any] = {
        key: value if type(value).__name__ == "DictConfig" else made(classes["AnyNode"], _val=value, _parent=None)
        for key, value in values.items()
    }
    metadata = made(classes["ContainerMetadata"], ref_type=Any, object_type=dict)
    return made(classes["DictConfig"], _metadata=metadata, _content=nodes)


@contextmanager
def foreign_classes() -> Iterator[dict[str, type]]:
    """Provide classes for pickling, under the names of libraries; remove them at the end of the block."""
    classes = {name: type(name, (), {"__module__": module}) for module, name in FOREIGN.items()}
    modules = {}
    for module, name in FOREIGN.items():
        parents = [module.rsplit(".", depth)[0] for depth in range(module.count(".") + 1)]
        modules |= {parent: ModuleType(parent) for parent in parents if parent not in modules}
        setattr(modules[module], name, classes[name])
    before = {module: sys.modules[module] for module in modules if module in sys.modules}
    sys.modules.update(modules)
    try:
        yield classes
    finally:
        for module in modules:
            del sys.modules[module]
        sys.modules.update(before)
