"""Failures of TensorRT-LLM's builder, and what the user can do about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from opt_trt.errors import UserError, spelled

OUT_OF_MEMORY_KILL = -9  # exit code of a process the system killed, almost always for lack of host memory
ERROR_LINE = re.compile(r"^\w*(\.\w+)*(Error|Exception)\b|\[E\]")


@dataclass(frozen=True)
class Failure:
    """A line with which the builder is known to fail, and the advice for it."""

    pattern: str
    advice: str


# The first failure that matches any line is reported, so causes come before their consequences.
FAILURES = (
    Failure(r"unrecognized arguments|invalid choice: |argument --\w+: ",
            "its flags are not those known of this release; install tensorrt_llm==1.2.1"),
    Failure(r"cannot load MPI library|libmpi\S*: cannot open shared object",
            "there is no MPI it can load; install the system's: apt-get install libopenmpi-dev"),
    Failure(r"^(ImportError|ModuleNotFoundError)|undefined symbol|cannot open shared object",
            "the package does not load: its tensorrt, torch or CUDA is of another version than its wheel needs; "
            "install tensorrt_llm==1.2.1 into an environment of its own"),
    Failure(r"Version tag does not match|not compatible with this version of TensorRT|stdVersionRead",
            "the timing cache or engine is of another TensorRT; delete it, or name another "
            f"{spelled('input_timing_cache')}"),
    Failure(r"not supported on SM\s*>?=?\s*\d+",
            "the GPU's kernels cannot do it; for weight-only on SM 100 to 119 convert without "
            f"{spelled('use_weight_only')}, or give {spelled('backend')} inductor"),
    Failure(r"(?i)out ?of ?memory|cudaErrorMemoryAllocation|std::bad_alloc|Cannot allocate memory",
            f"memory ran out; give smaller {spelled('max_batch_size')}, {spelled('max_num_tokens')} or "
            f"{spelled('max_seq_len')}, or {spelled('workers')} 1"),
    Failure(r"for parameter '.*lm_head|for parameter '.*vocab_embedding",
            "the vocabulary is cut unequally over the ranks; convert the model again with this project's "
            "convert_checkpoint.py, which pads it"),
    Failure(r"The value updated is not the same shape",
            "a tensor is not of the shape TensorRT-LLM's OPT has; convert the model again"),
    Failure(r"Required but not provided tensors",
            "the checkpoint lacks tensors of TensorRT-LLM's OPT; convert the model again"),
    Failure(r"isfile\(weights_path\)|rank\d+\.safetensors.*(No such file|not found)",
            "a rank of the checkpoint is missing; copy all its files, or convert it again"),
    Failure(r"max_workers must be greater than 0|No CUDA GPUs are available|no CUDA-capable device",
            "no GPU is visible to it; see nvidia-smi and CUDA_VISIBLE_DEVICES"),
    Failure(r"(QuantConfig|Mapping)\S* got an unexpected keyword argument",
            "config.json has a key unknown to this release; convert the model again"),
    Failure(r"No space left on device|Errno 28", "the disk is full; free space"),
)  # fmt: skip


def explain(lines: Sequence[str], code: int, version: str) -> UserError:
    """Return the error of a builder that printed `lines` and ended with exit code `code`."""
    failed = f"TensorRT-LLM {version}'s builder failed (exit code {code})"
    for failure in FAILURES:
        for line in lines:
            if re.search(failure.pattern, line):
                return UserError(f"{failed}: {_shortened(line)}; {failure.advice}")
    if code == OUT_OF_MEMORY_KILL:
        return UserError(
            f"{failed}: the system killed it, probably for want of memory; give it more, or {spelled('workers')} 1"
        )
    last = next(
        (line for line in reversed(lines) if ERROR_LINE.search(line)), lines[-1] if lines else "it said nothing"
    )
    return UserError(f"{failed}: {_shortened(last)}; its log above says more, {spelled('log_level')} verbose most")


def _shortened(line: str, longest: int = 300) -> str:
    line = line.strip()
    return line if len(line) <= longest else f"{line[:longest]}..."
