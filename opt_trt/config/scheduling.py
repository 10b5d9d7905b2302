"""How requests share a session: who waits, how long prompts are cut, what is kept for prompts that begin alike."""

from __future__ import annotations

from dataclasses import dataclass

from opt_trt.errors import UserError

POLICIES = ("guaranteed_no_evict", "max_utilization")  # TensorRT-LLM's names


@dataclass(frozen=True)
class Scheduling:
    """`guaranteed_no_evict` reserves blocks for all tokens a request may need before it starts.

    `max_utilization` reserves none: more requests run, and when blocks run out the newest one starts over.
    """

    policy: str = POLICIES[0]
    context_chunk_size: int = 64  # most prompt tokens in a step in which other requests generate
    enable_block_reuse: bool = False  # look up beginnings of prompts in the KV cache

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UserError(f"--scheduler_policy must be {' or '.join(POLICIES)}, found {self.policy}")
        if self.context_chunk_size < 1:
            raise UserError(f"--context_chunk_size must be at least 1, found {self.context_chunk_size}")
