"""How requests share a session: who waits, how long prompts are cut, what is kept for prompts that begin alike."""

from __future__ import annotations

from dataclasses import dataclass

from opt_trt.errors import UserError, spelled

POLICIES = ("guaranteed_no_evict", "max_utilization")  # TensorRT-LLM's names
LEAST_CHUNK = 16  # prompt tokens: what reads the weights anyway may as well do some work


@dataclass(frozen=True)
class Scheduling:
    """`guaranteed_no_evict` reserves blocks for all tokens a request may need before it starts.

    `max_utilization` reserves none: more requests run, and when blocks run out the newest one starts over.
    """

    policy: str = POLICIES[0]
    context_chunk_size: int | None = None  # most prompt tokens in a step in which other requests generate
    enable_block_reuse: bool = False  # look up beginnings of prompts in the KV cache

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UserError(f"{spelled('scheduler_policy')} must be {' or '.join(POLICIES)}, found {self.policy}")
        if self.context_chunk_size is not None and self.context_chunk_size < 1:
            raise UserError(f"{spelled('context_chunk_size')} must be at least 1, found {self.context_chunk_size}")

    def most_prompt_tokens(self, num_generating: int) -> int:
        """In a step in which `num_generating` requests wait for a token of theirs.

        By default three for every two of them: a token costs about the same in either phase, so that a step with
        prompts takes no longer than two and a half without.
        """
        return self.context_chunk_size or max(LEAST_CHUNK, 3 * num_generating // 2)
