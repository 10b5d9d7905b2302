"""The programs of a GPU's engine, and which of them a step takes.

Tactics differ between buckets of tokens, and so do programs. A program is named by its kind, its phase and the bound of
its bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opt_trt.backends.engine import Limits
from opt_trt.model.config import ModelConfig
from opt_trt.plugins.cuda.buckets import BUCKETS, Bound, bound_of, bounds_for
from opt_trt.step import StepInputs

GENERATION, CONTEXT, HALF_CONTEXT = "generation", "context", "half_context"  # half: attention sums in fp16
KINDS = ("embedding", "layer", "head")
MOST_REPLAYED = 256  # sequences; a step of more takes longer to compute than to launch


@dataclass(frozen=True)
class CudaProgramTable:
    """The programs of an engine, from the most sequences, tokens and rows of logits that a step may have."""

    sequences: int
    tokens: int
    logits: int
    has_half_sums: bool

    @classmethod
    def of(cls, model: ModelConfig, limits: Limits) -> CudaProgramTable:
        """Return the table of an engine."""
        sequences = min(limits.max_batch_size, limits.max_num_tokens)
        gathers = limits.gather_context_logits
        logits = limits.max_num_tokens if gathers else sequences
        return cls(sequences, limits.max_num_tokens, logits, model.dtype == "float16")

    @property
    def context_bounds(self) -> tuple[Bound, ...]:
        """The buckets of steps with prompts: at most two, as kernels of the largest bounded one take fewer tokens."""
        bounds = bounds_for(self.tokens)
        return bounds[-2:] if bounds[-1] is None else bounds[-1:]

    @property
    def contexts(self) -> tuple[str, ...]:
        """The phases with prompts; they differ in the type that attention sums in."""
        return (CONTEXT, HALF_CONTEXT) if self.has_half_sums else (CONTEXT,)

    def layers(self) -> dict[str, tuple[str, Bound]]:
        """Name the programs of a layer, with their phases and bounds."""
        found = [(GENERATION, bound) for bound in bounds_for(self.sequences)]
        found += [(phase, bound) for phase in self.contexts for bound in self.context_bounds]
        return {_name(f"layer_{phase}", bound): (phase, bound) for phase, bound in found}

    def heads(self) -> dict[str, Bound]:
        """Name the programs of the head, with their bounds."""
        return {_name("head", bound): bound for bound in bounds_for(self.logits)}

    def names(self, kinds: Sequence[str] = KINDS) -> tuple[str, ...]:
        """Name all programs of some kinds, for example of those that a pipeline stage runs."""
        return tuple(name for name in ("embedding", *self.layers(), *self.heads()) if name.split("_")[0] in kinds)

    def layer_of(self, inputs: StepInputs, context: str) -> str:
        """Name the program of a step's layers; `context` is the phase of prompts."""
        tokens = len(inputs.input_ids)
        if is_generation(inputs):
            return _name(f"layer_{GENERATION}", bound_of(tokens, bounds_for(self.sequences)))
        return _name(f"layer_{context}", bound_of(tokens, self.context_bounds))

    def head_of(self, inputs: StepInputs) -> str:
        """Name the program of a step's head."""
        return _name("head", bound_of(len(inputs.last_token_ids), bounds_for(self.logits)))


def is_generation(inputs: StepInputs) -> bool:
    """Say whether every sequence of a step brings one token."""
    return len(inputs.input_ids) == len(inputs.kv_lens)


def replayed_rows(inputs: StepInputs) -> int | None:
    """Return the number of sequences, a power of two, that a step is padded to; None if it is not one to capture."""
    count = len(inputs.kv_lens)
    captured = is_generation(inputs) and len(inputs.last_token_ids) == count and inputs.hidden_token_ids is None
    return 1 << (count - 1).bit_length() if captured and count <= MOST_REPLAYED else None


def _name(kind: str, bound: Bound) -> str:
    return f"{kind}_{bound or f'beyond_{BUCKETS[-1]}'}"
