"""Conversion rates and peak memory, beside a plain copy on the same disk and beside other converters.

    python benchmarks/convert.py --work_dir /tmp/convert [--layers 32] [--pairs 3] [--json FILE] [--peer_python PYTHON]

The source is a random fp16 OPT of the 2.7B's width in shards, made once as safetensors and once as `.bin`; it is kept
in `--work_dir`, so remove that directory afterwards. "copy" is a plain copy: every round copies the source's weight
files with `shutil.copyfile`, then flushes files and directory with fsync, as a conversion does at its end. Both read
through the page cache. Every measurement is a process of its own, whose clocks start after the imports. The copy has
the same imports, because memory that was freed a moment ago is cheaper on virtual machines. All jobs take turns.

"in/copy" is the rate of a conversion, in bytes of its source, divided by the rate of the copy in the same round.
"out/copy" counts the bytes that the conversion writes instead; they are more if ranks repeat a table. Both are medians
over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import OPTConfig, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout without an installation

from opt_trt.sources.hf_config import read_hf_config
from opt_trt.sources.opt import HEAD, source_shapes

ROOT = Path(__file__).parents[1]
SHAPE = {"hidden_size": 2560, "word_embed_proj_dim": 2560, "num_attention_heads": 32, "ffn_dim": 10240}
LAYERS_PER_FILE = 8
FORMATS: dict[str, tuple[str, Callable[[dict[str, torch.Tensor], Path], None]]] = {
    "safetensors": ("model", lambda tensors, path: save_file(tensors, path, {"format": "pt"})),
    "bin": ("pytorch_model", torch.save),
}
WEIGHT_ONLY = {"use_weight_only": True, "target_sm": 80}
CONVERSIONS: dict[str, dict[str, Any]] = {
    "fp16": {},
    "fp16 tp 4": {"tp_size": 4},
    "int8": WEIGHT_ONLY,
    "int4": WEIGHT_ONLY | {"weight_only_precision": "int4"},
    "int8 deferred": WEIGHT_ONLY | {"defer_quantization": True},
}
# Each child prints its seconds, its CPU seconds, and its peak memory after the imports and at the end (VmHWM in kB).
CHILD = """
import json, os, shutil, sys, time
from pathlib import Path
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
source, target, flags = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
{imports}
imported, started, busy = peak(), time.perf_counter(), time.process_time()
{work}
print(json.dumps([time.perf_counter() - started, time.process_time() - busy, imported, peak()]))
"""
COPY = """
Path(target).mkdir()
for path in Path(source).glob("*model*-of-*"):
    shutil.copyfile(path, Path(target, path.name))
for path in (*Path(target).iterdir(), target):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
"""
CONVERT = """
convert(ConvertConfig(model_dir=source, output_dir=target, log_level="error", **flags))
"""
CONVERT_IMPORTS = "from opt_trt.config.convert_flags import ConvertConfig; from opt_trt.convert.convert import convert"
TRANSFORMERS = """
model = OPTForCausalLM.from_pretrained(source, dtype=torch.float16)
sum(parameter.view(torch.int16).amax().item() for parameter in model.parameters())  # mapped files are read at first use
"""
CTRANSLATE2 = "TransformersConverter(source, load_as_float16=True).convert(target, quantization=flags)"
PEERS = {  # name: package, imports, work, flags
    "transformers load": ("transformers", "import torch; from transformers import OPTForCausalLM", TRANSFORMERS, None),
    "CTranslate2 fp16": (
        "ctranslate2", "from ctranslate2.converters import TransformersConverter", CTRANSLATE2, "float16"
    ),
    "CTranslate2 int8": (
        "ctranslate2", "from ctranslate2.converters import TransformersConverter", CTRANSLATE2, "int8"
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ConversionJob:
    """A job to measure: the imports and the work of a child process, and its interpreter."""

    imports: str
    work: str
    flags: Any = None
    python: str = sys.executable


@dataclass(frozen=True)
class ChildResult:
    """The measurements that a child printed, and the number of bytes that it wrote."""

    seconds: float
    busy: float  # CPU seconds, including those of the system
    imported: int  # peak memory in bytes after the imports
    peak: int
    written: int


def make_source(directory: Path, layers: int, kind: str) -> Path:
    """Write a random source in files of some GB, unless it exists."""
    if (directory / "config.json").exists():  # written last, so the rest is complete
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    config = OPTConfig(**SHAPE, num_hidden_layers=layers, torch_dtype="float16", architectures=["OPTForCausalLM"])
    config.save_pretrained(directory / "config")
    shapes = source_shapes(read_hf_config(directory / "config" / "config.json"))
    names = [name for name in shapes if name != HEAD]
    stem, save = FORMATS[kind]
    count = -(-layers // LAYERS_PER_FILE)
    files = {name: f"{stem}-{file_of(name) + 1:05}-of-{count:05}.{kind}" for name in names}
    for file in sorted(set(files.values())):
        parts = {f"model.{name}": random_tensor(shapes[name]) for name in names if files[name] == file}
        save(parts, directory / file)
    index = {"metadata": {}, "weight_map": {f"model.{name}": file for name, file in files.items()}}
    (directory / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    save_tokenizer(directory, config.vocab_size)
    (directory / "config" / "config.json").rename(directory / "config.json")
    (directory / "config").rmdir()
    return directory


def file_of(name: str) -> int:
    """Return the number of the source's file that holds a tensor, counted from 0."""
    layer = re.search(r"layers\.(\d+)", name)
    return int(layer[1]) // LAYERS_PER_FILE if layer else 0


def random_tensor(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape).mul_(0.02).half()


def save_tokenizer(directory: Path, size: int) -> None:
    """Write a tokenizer with as many tokens as the model, because CTranslate2 needs one."""
    words = Tokenizer(WordLevel({str(token): token for token in range(size)}, unk_token="3"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="3").save_pretrained(directory)


def run_job(job: ConversionJob, source: Path, target: Path) -> ChildResult:
    """Run a job in a process of its own; remove its output."""
    shutil.rmtree(target, ignore_errors=True)
    code = CHILD.format(imports=job.imports, work=job.work)
    command = [job.python, "-c", code, str(source), str(target), json.dumps(job.flags)]
    quiet = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=quiet)
    seconds, busy, imported, peak = json.loads(done.stdout.splitlines()[-1])
    written = size(target, "*") if target.exists() else 0
    shutil.rmtree(target, ignore_errors=True)
    return ChildResult(seconds, busy, 1024 * imported, 1024 * peak, written)


def size(directory: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in directory.glob(pattern) if path.is_file())


def peer_jobs(python: str) -> dict[str, ConversionJob]:
    """Return jobs of the other converters that this interpreter can import; print the names of the rest."""
    jobs = {}
    for name, (package, imports, work, flags) in PEERS.items():
        found = subprocess.run([python, "-c", f"import {package}; print({package}.__version__)"], capture_output=True)
        if found.returncode:
            print(f"{name}: skipped, {python} cannot import {package} (see --peer_python)")
        else:
            jobs[name] = ConversionJob(imports, work, flags, python)
    return jobs


def measure_rounds(
    jobs: dict[str, ConversionJob], source: Path, work: Path, pairs: int
) -> dict[str, list[ChildResult]]:
    """Measure all jobs one after another, `pairs` times."""
    measured: dict[str, list[ChildResult]] = {name: [] for name in jobs}
    for _ in range(pairs):
        for name, job in jobs.items():
            measured[name].append(run_job(job, source, work / "out"))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True, help="needs four times the source: 22 GB at 32 layers")
    parser.add_argument("--layers", type=int, default=32, help="32 make the 2.7B")
    parser.add_argument("--pairs", type=int, default=3, help="rounds of copy and conversions")
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--only", nargs="*", choices=CONVERSIONS, default=list(CONVERSIONS))
    parser.add_argument("--peer_python", default=sys.executable, help="an interpreter that can import ctranslate2")
    parser.add_argument("--no_peers", action="store_true")
    parser.add_argument("--json", type=Path, help="write every measurement here")
    a = parser.parse_args()
    results = {}
    for kind in a.formats:
        source = make_source(a.work_dir / f"{kind}-{a.layers}", a.layers, kind)
        jobs = {"copy": ConversionJob(CONVERT_IMPORTS, COPY)}
        jobs |= {name: ConversionJob(CONVERT_IMPORTS, CONVERT, CONVERSIONS[name]) for name in a.only}
        jobs |= {} if a.no_peers else peer_jobs(a.peer_python)
        measured = measure_rounds(jobs, source, a.work_dir, a.pairs)
        report(f"{kind}, {a.layers} layers", measured, size(source, "*model*-of-*"))
        results[kind] = {name: [asdict(m) for m in values] for name, values in measured.items()}
        if a.json:
            a.json.write_text(json.dumps(results))


def report(title: str, results: dict[str, list[ChildResult]], source_bytes: int) -> None:
    """Print medians with their spreads."""
    pairs = len(results["copy"])
    print(f"{title}, {source_bytes / 1e9:.2f} GB, {pairs} rounds: medians (min-max)")
    print(
        "                          s     min-max   CPU s  GB/s in  in/copy    min-max  out/copy  peak GB  over imports"
    )
    for name, measured in results.items():
        seconds = [m.seconds for m in measured]
        ratios = [copy.seconds / m.seconds for copy, m in zip(results["copy"], measured, strict=True)]
        middle, ratio = statistics.median(seconds), statistics.median(ratios)
        busy = statistics.median(m.busy for m in measured)
        out = ratio * statistics.median(m.written for m in measured) / source_bytes
        peak, over = (
            max(values) / 1e9 for values in zip(*((m.peak, m.peak - m.imported) for m in measured), strict=True)
        )
        spread, between = f"{min(seconds):.1f}-{max(seconds):.1f}", f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(
            f"{name:<18}{middle:>9.1f}{spread:>12}{busy:>8.1f}{source_bytes / middle / 1e9:>9.2f}"
            f"{ratio:>9.2f}{between:>11}{out:>10.2f}{peak:>9.2f}{over:>14.2f}"
        )


if __name__ == "__main__":
    main()
