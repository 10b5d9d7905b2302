"""Write outputs to files: token ids, log-probabilities and logits, one row per output."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from opt_trt.config.run_flags import RunConfig
from opt_trt.errors import UserError
from opt_trt.host.atomic import replace_file, replace_text
from opt_trt.run.spool import Spool, Spooled
from opt_trt.runtime.request import Request, Result, TokenEvent


@dataclass
class Output:
    """New tokens of one request and, if requested, their log-probabilities and logits."""

    ids: list[int]
    log_probs: list[float]
    context_logits: Spooled | None = None  # fp32 [P, V]
    generation_logits: Spooled | None = None  # fp32 [N, V]

    def add(self, event: TokenEvent) -> None:
        """Take the next token of a stream."""
        self.ids.append(event.token_id)
        if event.log_probs is not None:
            self.log_probs.append(event.log_probs.log_prob)


def output_of(result: Result, spool: Spool | None) -> Output:
    """Return the output of a whole result; its logits, if there are any, go into the spool."""
    log_probs = [token.log_prob for token in result.log_probs]
    logits = (result.context_logits, result.generation_logits)
    kept = [None if values is None or spool is None else spool.keep(values) for values in logits]
    return Output(list(result.output_ids), log_probs, *kept)


def write_outputs(config: RunConfig, requests: Sequence[Request], outputs: Sequence[Output], end_id: int) -> None:
    """Write the requested files. `end_id` fills rows of ids if the requests have no end id of their own.

    `R` is the number of prompts times sequences, `B` the number of beams shown of each. Ids are int32 `[R * B, longest
    prompt with its output]`. Log-probabilities are fp32 `[R, B, longest output]`, filled with 0, and `[R, B]` of whole
    outputs. Context logits are fp32 `[tokens of all prompts, V]`. Generation logits (never of beams) are fp32 `[R, 1,
    longest output, V]`, filled with 0.
    """
    num_beams = len(outputs) // len(requests)
    prompts = [request.prompt_ids for request in requests for _ in range(num_beams)]
    rows = [[*prompt_ids, *output.ids] for prompt_ids, output in zip(prompts, outputs, strict=True)]
    fill = requests[0].end_id
    ids = pad_rows(rows, end_id if fill is None else fill, np.int32)
    if config.output_csv is not None:
        write_csv(Path(config.output_csv), ids)
    if config.output_npy is not None:
        write_npy(Path(config.output_npy), ids)
    if config.output_log_probs_npy is not None:
        log_probs = pad_rows([output.log_probs for output in outputs], 0.0, np.float32)
        write_npy(Path(config.output_log_probs_npy), log_probs.reshape(len(requests), num_beams, -1))
    if config.output_cum_log_probs_npy is not None:
        sums = np.array([math.fsum(output.log_probs) for output in outputs], dtype=np.float32)
        write_npy(Path(config.output_cum_log_probs_npy), sums.reshape(-1, num_beams))
    if config.output_logits_npy is not None:
        _write_logits(outputs, *map(Path, config.logits_targets()))


def _write_logits(outputs: Sequence[Output], context_file: Path, generation_file: Path) -> None:
    context = [output.context_logits for output in outputs if output.context_logits is not None]
    if context:
        shape = (sum(logits.shape[0] for logits in context), context[0].shape[1])
        write_npy_parts(context_file, shape, (logits.read() for logits in context))
    generation = [output.generation_logits for output in outputs if output.generation_logits is not None]
    if generation:
        longest = max(logits.shape[0] for logits in generation)
        filled = (np.pad(logits.read(), ((0, longest - logits.shape[0]), (0, 0))) for logits in generation)
        write_npy_parts(generation_file, (len(generation), 1, longest, generation[0].shape[1]), filled)


def check_target(path: Path) -> None:
    """Raise `UserError` before the generation if the file cannot be written there."""
    if path.is_dir():
        raise UserError(f"{path} is a directory; give the name of a file")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not a directory; make it, or give another place for {path.name}")


def pad_rows(rows: Sequence[Sequence[float]], fill: float, dtype: type[np.number]) -> np.ndarray:
    """Return rows as an array `[rows, longest row]`; short rows are filled at the end."""
    padded = np.full((len(rows), max(map(len, rows))), fill, dtype=dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def write_csv(path: Path, ids: np.ndarray) -> None:
    """Write a line of comma-separated integers per row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(ids.tolist())
    replace_text(path, text.getvalue())


def write_npy(path: Path, values: np.ndarray) -> None:
    """Write numpy's format; the file name is kept as given."""
    replace_file(path, lambda file: np.save(file, values, allow_pickle=False))


def write_npy_parts(path: Path, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> None:
    """Write fp32 values of `shape` that come part by part, so that the whole array is never in memory."""

    def write(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype="<f4").data)

    replace_file(path, write)
