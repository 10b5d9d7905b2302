"""Outputs as files: token ids and log-probabilities, a row for each output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opt_trt.config.run import RunConfig
from opt_trt.run import array_files
from opt_trt.runtime.request import Request, Result, TokenEvent


@dataclass
class Output:
    """New tokens of one request and, if asked for, their log-probabilities."""

    ids: list[int]
    log_probs: list[float]

    def add(self, event: TokenEvent) -> None:
        """Take the next token of a stream."""
        self.ids.append(event.token_id)
        if event.log_probs is not None:
            self.log_probs.append(event.log_probs.log_prob)


def output_of(result: Result) -> Output:
    """The same of a whole result."""
    return Output(list(result.output_ids), [token.log_prob for token in result.log_probs])


def write_outputs(config: RunConfig, requests: Sequence[Request], outputs: Sequence[Output], end_id: int) -> None:
    """Write the files asked for. `end_id` fills rows of ids where the requests have none.

    `R` counts prompts times sequences, `B` the beams shown of each. Ids are int32 `[R * B, longest prompt with its
    output]`; log-probabilities are fp32 `[R, B, longest output]`, filled with 0, and `[R, B]` of whole outputs.
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
