"""The readers that are tried: how a good input is made, and what reads it. A new reader is a row of `TARGETS`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from opt_trt.cli import run_main
from opt_trt.commands import COMMANDS, NoFlags
from opt_trt.runtime.world import World
from tests.unit._metaseq import Metaseq
from tests.unit._models import Model, save
from tests.unit._whole_engine import write_engine

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo" / "model"
ROWS = [{"article": f"The mayor opened bridge {n}.", "highlights": f"Bridge {n} é"} for n in range(40)]
OWN_NAMES = {  # Hugging Face's names: FlagAI's
    "model.decoder.embed_tokens.": "transformer.wte.", "model.decoder.embed_positions.": "transformer.wpe.",
    "model.decoder.final_layer_norm.": "transformer.ln_f.", "model.decoder.layers.": "transformer.h.",
    "self_attn_layer_norm": "ln_1", "final_layer_norm": "ln_2", "self_attn.out_proj": "attn.c_proj",
    "self_attn.qkv_proj": "attn.c_attn", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A reader: `make` writes a good input into `in`; `read` gets the directory that holds `in` and may write `out`."""

    make: Callable[[Path], object]
    read: Callable[[Path], None]
    codes: tuple[int, ...] = (0, 2)  # the exit codes that a command may have
    slow: bool = False  # its good input takes a compiler

    def run(self, directory: Path) -> None:
        """Read the input as a command does; `SystemExit` with its exit code."""
        self.read(directory)


def command(name: str, *words: str) -> Callable[[Path], None]:
    """Return the start of a command; `IN`, `IN2` and `OUT` stand for directories."""

    def read(directory: Path) -> None:
        places = {"IN": directory / "in", "IN2": directory / "good", "OUT": directory / "out"}
        argv = [str(places.get(word, word)) if "/" not in word else str(directory / word) for word in words]
        chosen = COMMANDS[name]
        run_main(partial(chosen.start, world=World()), chosen.config_class, argv)

    return read


def function(call: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a reader that is no command: its errors become exit codes as those of commands do."""
    return lambda directory: run_main(lambda config: call(directory / "in") and None, NoFlags, [])


def _tokenizer(directory: Path) -> None:
    from opt_trt.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(directory)
    tokenizer.decode(tokenizer.encode("The mayor opened a bridge.", 64))


def _prompts(name: str) -> Callable[[Path], None]:
    return function(lambda directory: _read_prompts(directory / name))


def _read_prompts(path: Path) -> None:
    from opt_trt.run import prompt_files

    if prompt_files.is_text(path):
        prompt_files.read_texts(path)
    else:
        prompt_files.read_ids(path, prompt_files.PromptRules(vocab_size=2560, pad_id=1))


def _articles(directory: Path) -> None:
    from opt_trt.evaluate.dataset import DatasetSource, load_articles

    for article in load_articles(DatasetSource(directory)):
        assert isinstance(article.text, str)


def _timings(directory: Path) -> None:
    from opt_trt.plugins.tune.timing import TimingCache

    TimingCache.load("cpu", directory / "model.cache")


def _check_engine(directory: Path) -> None:
    from opt_trt.backends.engine import check_rank, map_weights
    from opt_trt.backends.engine import read_engine_config as read

    check_rank(directory, read(directory), 0)
    assert map_weights(directory, 0)


def _engine(directory: Path) -> None:
    from tests._commands import run_command

    checkpoint = directory.with_name("checkpoint")
    checkpoint.mkdir()
    _checkpoint(checkpoint)
    directory.rmdir()
    code, said = run_command("build", "--checkpoint_dir", checkpoint, "--output_dir", directory)
    assert code == 0, said
    (directory / "ids.csv").write_text("2,5,6\n")


def _copy_tokenizer(directory: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        shutil.copy(DEMO / name, directory)


def _fast_tokenizer(directory: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(DEMO).save_pretrained(directory)


def _blip2(directory: Path) -> None:
    model = Model()
    tensors = {f"language_model.{name}": tensor for name, tensor in model.tensors.items()}
    save(tensors | {"vision_model.x": torch.ones(2)}, directory / "model.safetensors", "safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "blip-2", "text_config": model.config}))


def _flagai(directory: Path, parts: int) -> None:
    model = Model(layers=1)
    tensors = dict(model.tensors)
    for kind in ("weight", "bias"):
        names = [f"model.decoder.layers.0.self_attn.{part}_proj.{kind}" for part in "qkv"]
        tensors["model.decoder.layers.0.self_attn.qkv_proj." + kind] = torch.cat([tensors.pop(name) for name in names])
    renamed = {}
    for name, tensor in tensors.items():
        for theirs, own in OWN_NAMES.items():
            name = name.replace(theirs, own)
        renamed[name] = tensor
    for part in range(parts):
        torch.save(renamed, directory / f"pytorch_model_{part:02}.bin")
    (directory / "config.json").write_text(json.dumps(model.config))


def _alpa(directory: Path) -> None:
    model = Model(layers=1)
    for name, tensor in model.tensors.items():
        with (directory / name.removeprefix("model.")).open("wb") as file:
            np.save(file, tensor.numpy())
    (directory / "config.json").write_text(json.dumps(model.config))


def _manifest(directory: Path) -> None:
    Model(layers=1).write(directory)
    sums = {name: hashlib.md5((directory / name).read_bytes()).hexdigest() for name in ("model.safetensors",)}
    (directory / "sums.csv").write_text("shard,md5sum\n" + "".join(f"{n},{s}\n" for n, s in sums.items()))


def _checkpoint(directory: Path, *words: str) -> None:
    from tests._commands import run_command

    source = Model(layers=1, vocab=64, hidden=64, width=64, ffn=128).write(directory.with_name("source"))
    shutil.rmtree(directory)
    code, said = run_command("convert", "--model_dir", source, "--output_dir", directory, *words)
    assert code == 0, said


def _saved(directory: Path, split: bool) -> None:
    import datasets

    rows = datasets.Dataset.from_list(ROWS)
    (datasets.DatasetDict(test=rows) if split else rows).save_to_disk(str(directory))


def _parquet(directory: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).to_parquet(str(directory / "test.parquet"))


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_text(text)


CONVERT = command("convert", "--model_dir", "IN", "--output_dir", "OUT")
INT8 = ("--use_weight_only", "--weight_only_precision", "int8")
TARGETS = {
    "safetensors": Target(lambda d: Model().write(d), CONVERT),
    "safetensors shards": Target(lambda d: Model().write(d, shards=3), CONVERT),
    "bin": Target(lambda d: Model().write(d, "bin"), CONVERT),
    "bin shards": Target(lambda d: Model().write(d, "bin", shards=2), CONVERT),
    "older bin": Target(lambda d: Model(layers=1).write(d, "legacy"), CONVERT),
    "blip2": Target(_blip2, command("convert", "--model_type", "blip2", "--model_dir", "IN", "--output_dir", "OUT")),
    "metaseq": Target(lambda d: Metaseq(Model(layers=1), parts=2).write(d), CONVERT),
    "metaseq layers": Target(lambda d: Metaseq(Model(layers=1), layout="layers", metadata=True).write(d), CONVERT),
    "metaseq shards": Target(
        lambda d: Metaseq(Model(layers=1), shards=2, layout="one", metadata=True).write(d), CONVERT
    ),
    "flagai": Target(lambda d: _flagai(d, 1), CONVERT),
    "alpa": Target(_alpa, CONVERT),
    "manifest": Target(
        _manifest, command("convert", "--model_dir", "IN", "--output_dir", "OUT", "--md5_manifest", "in/sums.csv")
    ),
    "describe source": Target(lambda d: Model().write(d), command("describe", "IN", "--json")),
    "describe": Target(_checkpoint, command("describe", "IN", "--json")),
    "describe ranks": Target(lambda d: _checkpoint(d, "--tp_size", "2"), command("describe", "IN")),
    "compare": Target(_checkpoint, command("describe", "--compare", "IN", "IN2"), codes=(0, 1, 2)),
    "export_hf": Target(_checkpoint, command("export_hf", "--checkpoint_dir", "IN", "--output_dir", "OUT")),
    "repack": Target(
        lambda d: _checkpoint(d, *INT8),
        command("repack", "--checkpoint_dir", "IN", "--output_dir", "OUT", "--target_sm", "90"),
    ),
    "build": Target(
        _checkpoint, command("build", "--checkpoint_dir", "IN", "--output_dir", "OUT", "--dry_run")
    ),
    "engine": Target(write_engine, function(_check_engine)),
    "describe engine": Target(write_engine, command("describe", "IN", "--json"), codes=(0, 1, 2)),
    "run": Target(
        _engine, command("run", "--engine_dir", "IN", "--max_output_len", "2", "--input_file", "in/ids.csv"), slow=True
    ),
    "text prompts": Target(_write("prompts.txt", "The mayor\n\nA bridge é\n"), _prompts("prompts.txt")),
    "csv prompts": Target(_write("prompts.csv", "2,5,6\n2, 7\n"), _prompts("prompts.csv")),
    "npy prompts": Target(lambda d: np.save(d / "prompts.npy", np.ones((3, 4), "int32") * 5), _prompts("prompts.npy")),
    "tokenizer": Target(_copy_tokenizer, function(_tokenizer)),
    "tokenizer.json": Target(_fast_tokenizer, function(_tokenizer)),
    "jsonl": Target(_write("test.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS[:5])), function(_articles)),
    "json": Target(_write("test.json", json.dumps(ROWS[:5])), function(_articles)),
    "parquet": Target(_parquet, function(_articles)),
    "saved": Target(lambda d: _saved(d, split=False), function(_articles)),
    "saved splits": Target(lambda d: _saved(d, split=True), function(_articles)),
    "timings": Target(_write("model.cache", json.dumps({"cpu | qkv": {"a": 1.5, "b": 2.0}})), function(_timings)),
}  # fmt: skip
