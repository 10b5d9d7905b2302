"""Outputs as files: token ids, log-probabilities and logits, a row for each output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import pad

from opt_trt.config.run_flags import RunConfig
from opt_trt.run import array_files
from opt_trt.runtime.request import Request, Result, TokenEvent


@dataclass
class Output:
    """New tokens of one request and, if asked for, their log-probabilities and logits."""

    ids: list[int]
    log_probs: list[float]
    context_logits: torch.Tensor | None = None  # fp32 [P, V]
    generation_logits: torch.Tensor | None = None  # fp32 [N, V]

    def add(self, event: TokenEvent) -> None:
        """Take the next token of a stream."""
        self.ids.append(event.token_id)
        if event.log_probs is not None:
            self.log_probs.append(event.log_probs.log_prob)


def output_of(result: Result) -> Output:
    """The same of a whole result."""
    log_probs = [token.log_prob for token in result.log_probs]
    return Output(list(result.output_ids), log_probs, result.context_logits, result.generation_logits)


def write_outputs(config: RunConfig, requests: Sequence[Request], outputs: Sequence[Output], end_id: int) -> None:
    """Write the files asked for. `end_id` fills rows of ids where the requests have none.

    `R` counts prompts times sequences, `B` the beams shown of each. Ids are int32 `[R * B, longest prompt with its
    output]`; log-probabilities are fp32 `[R, B, longest output]`, filled with 0, and `[R, B]` of whole outputs. Context
    logits are fp32 `[tokens of all prompts, V]`, generation logits (never of beams) `[R, 1, longest output, V]`, filled
    with 0.
    """
    num_beams = len(outputs) // len(requests)
    prompts = [request.prompt_ids for request in requests for _ in range(num_beams)]
    rows = [[*prompt_ids, *output.ids] for prompt_ids, output in zip(prompts, outputs, strict=True)]
    fill = requests[0].end_id
    ids = array_files.pad_rows(rows, end_id if fill is None else fill, np.int32)
    if config.output_csv is not None:
        array_files.write_csv(Path(config.output_csv), ids)
    if config.output_npy is not None:
        array_files.write_npy(Path(config.output_npy), ids)
    if config.output_log_probs_npy is not None:
        log_probs = array_files.pad_rows([output.log_probs for output in outputs], 0.0, np.float32)
        array_files.write_npy(Path(config.output_log_probs_npy), log_probs.reshape(len(requests), num_beams, -1))
    if config.output_cum_log_probs_npy is not None:
        sums = np.array([math.fsum(output.log_probs) for output in outputs], dtype=np.float32)
        array_files.write_npy(Path(config.output_cum_log_probs_npy), sums.reshape(-1, num_beams))
    if config.output_logits_npy is not None:
        _write_logits(outputs, *map(Path, config.logits_targets()))


def _write_logits(outputs: Sequence[Output], context_file: Path, generation_file: Path) -> None:
    context = [output.context_logits for output in outputs if output.context_logits is not None]
    if context:
        shape = (sum(map(len, context)), context[0].shape[1])
        array_files.write_npy_parts(context_file, shape, (logits.numpy() for logits in context))
    generation = [output.generation_logits for output in outputs if output.generation_logits is not None]
    if generation:
        longest = max(map(len, generation))
        filled = (pad(logits, (0, 0, 0, longest - len(logits))).numpy() for logits in generation)
        array_files.write_npy_parts(generation_file, (len(generation), 1, longest, generation[0].shape[1]), filled)
