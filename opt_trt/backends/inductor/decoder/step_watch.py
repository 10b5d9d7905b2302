"""Compare steps with the times that tactics took when the engine was built, and say once if the processor is shared."""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

import torch

from opt_trt.backends.engine import EngineConfig
from opt_trt.plugins.tactic import BUCKETS
from opt_trt.plugins.tune.common import ATTENTION_KV_LEN, LAST_BUCKET_TOKENS
from opt_trt.step import StepInputs

BETWEEN_S = 0.05  # from one step that is compared to the next
LEAST_STEPS, LEAST_S = 5, 1.0  # that are compared together
TOO_SLOW = 3.0
SHARED = (
    "opt_trt: steps take {times:.0f} times as long as when the engine was built: other programs use this processor, or "
    "it is slower; try --threads 1 (in Python threads=1), or fewer programs at a time"
)


class ExpectedStep:
    """The time of a step by the tactics' times, in seconds; without the parts of a step that take no tactic."""

    def __init__(self, tactic_us: Mapping[str, Sequence[float]], layers: int, kv_len: int) -> None:
        """Take the times of an engine's sites in each bucket, and of attention in both phases at `kv_len` tokens."""
        sites = [times for site, times in tactic_us.items() if site not in ("head", "attention")]
        self._layer_us = [sum(times) for times in zip(*sites, strict=True)]
        self._head_us, self._attention_us = tactic_us["head"], tactic_us["attention"]
        self._layers, self._kv_len = layers, kv_len

    def seconds(self, inputs: StepInputs) -> float:
        """Return the time of a step."""
        tokens, rows = len(inputs.input_ids), len(inputs.last_token_ids)
        attended = int(inputs.kv_lens.sum()) if tokens == len(inputs.kv_lens) else tokens * int(inputs.kv_lens.max())
        generation, context = self._attention_us
        unit, unit_us = (1, generation) if tokens == len(inputs.kv_lens) else (self._kv_len, context)
        attention_us = unit_us * max(1.0, attended / (unit * self._kv_len))
        layer_us = _in_bucket(self._layer_us, tokens) + attention_us
        return (self._layers * layer_us + _in_bucket(self._head_us, rows)) / 1e6


class StepWatch:
    """A listener to the times of steps. It compares few of them, so that the others lose no time."""

    def __init__(self, expected: ExpectedStep | None, say: Callable[[str], None]) -> None:
        """Listen, and `say` one line when steps are too slow; without an expectation, nothing is ever said."""
        self._expected, self._say = expected, say
        self._next, self._since = 0.0, math.inf
        self._compared: list[tuple[float, float]] = []  # seconds that a step took, and those that were expected

    def observe(self, began: float, ended: float, inputs: StepInputs) -> None:
        """Note a step that began and ended at these seconds of one clock."""
        if began < self._next or self._expected is None:
            return
        self._next = ended + BETWEEN_S
        self._since = min(self._since, began)
        self._compared.append((ended - began, self._expected.seconds(inputs)))
        if len(self._compared) < LEAST_STEPS or ended - self._since < LEAST_S:
            return
        took, expected = map(sum, zip(*self._compared, strict=True))
        self._since, self._compared = math.inf, []
        if took >= TOO_SLOW * expected:
            self._expected = None
            self._say(SHARED.format(times=took / expected))


def watch_of(config: EngineConfig, rank: int) -> StepWatch:
    """Return the watch of a rank's steps: of engines whose tactics' times are known, and of rank 0 only."""
    model, built = config.pretrained_config, config.device.get("threads")
    if not config.tactic_us or built is None or rank:
        return StepWatch(None, _warn)
    slower = max(1.0, int(built) / torch.get_num_threads())  # with fewer threads than at the build
    times = {site: [us * slower for us in row] for site, row in config.tactic_us.items()}
    layers = len(model.stage_layers(model.mapping.pp_rank(rank)))
    return StepWatch(ExpectedStep(times, layers, min(ATTENTION_KV_LEN, model.max_position_embeddings)), _warn)


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _in_bucket(times_us: Sequence[float], tokens: int) -> float:
    bucket = bisect_left(BUCKETS, tokens)
    return times_us[bucket] * max(1.0, tokens / LAST_BUCKET_TOKENS)
