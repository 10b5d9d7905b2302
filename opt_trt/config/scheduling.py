"""The rules by which requests share a session: which wait, how prompts are cut, which beginnings are kept."""

from __future__ import annotations

from dataclasses import dataclass

from opt_trt.errors import UserError, spelled

POLICIES = ("guaranteed_no_evict", "max_utilization")  # TensorRT-LLM's names
LEAST_CHUNK = 16  # prompt tokens: a step reads all weights anyway, so that a few tokens more cost little


@dataclass(frozen=True)
class Scheduling:
    """The rules by which requests share a session.

    `guaranteed_no_evict` reserves blocks for all tokens that a request may need before it starts. `max_utilization`
    reserves none: more requests run, and when blocks run out the newest request starts over.
    """

    policy: str = POLICIES[0]
    context_chunk_size: int | None = None  # most prompt tokens in a step in which other requests generate
    enable_block_reuse: bool = False  # look for beginnings of prompts in the KV cache

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UserError(f"{spelled('scheduler_policy')} must be {' or '.join(POLICIES)}, found {self.policy}")
        if self.context_chunk_size is not None and self.context_chunk_size < 1:
            raise UserError(f"{spelled('context_chunk_size')} must be at least 1, found {self.context_chunk_size}")

    def most_prompt_tokens(self, num_generating: int) -> int:
        """Return the most prompt tokens of a step in which `num_generating` requests wait for their next token.

        By default there are three for every two such requests. A token costs about the same in either phase, so that a
        step with prompts takes no longer than two and a half steps without.
        """
        return self.context_chunk_size or max(LEAST_CHUNK, 3 * num_generating // 2)
