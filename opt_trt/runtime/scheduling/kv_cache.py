"""The size of the paged KV cache, and its memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from opt_trt.errors import UserError, spelled
from opt_trt.host.disk import size_text
from opt_trt.runtime.scheduling.block_pool import blocks_for
from opt_trt.step import DecoderSpec


@dataclass(frozen=True)
class KvCacheLimit:
    """The most the pool may take: `max_tokens`, and the share `free_fraction` of the free memory."""

    max_tokens: int | None = None
    free_fraction: float = 0.9

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"{spelled('max_tokens_in_paged_kv_cache')} must be at least 1, found {self.max_tokens}")
        if not 0.0 < self.free_fraction <= 1.0:
            option = spelled("kv_cache_free_gpu_memory_fraction")
            raise UserError(f"{option} must be in (0, 1], found {self.free_fraction}")


def pool_blocks(spec: DecoderSpec, limit: KvCacheLimit, free_bytes: int) -> int:
    """Return the number of blocks: as many as a full batch of longest sequences needs, or fewer if the limit says so.

    `max_tokens` is rounded up to whole blocks. `UserError` when the memory does not hold a single block.
    """
    block_bytes = spec.kv_block_bytes()
    affordable = int(free_bytes * limit.free_fraction) // block_bytes
    if affordable < 1:
        raise UserError(
            f"the KV cache needs at least one block of {size_text(block_bytes)}, "
            f"{limit.free_fraction:g} of the {size_text(free_bytes)} that are free is less; free memory, raise "
            f"{spelled('kv_cache_free_gpu_memory_fraction')} or build with a smaller {spelled(spec.block_option)}"
        )
    wanted = spec.max_batch_size * blocks_for(spec.max_seq_len, spec.tokens_per_block)
    allowed = wanted if limit.max_tokens is None else blocks_for(limit.max_tokens, spec.tokens_per_block)
    return min(wanted, allowed, affordable)


def allocate(spec: DecoderSpec, num_blocks: int) -> list[torch.Tensor]:
    """Return one uninitialized tensor per layer on the decoder's device. A CPU's pages use memory only once written."""
    try:
        shape = spec.kv_shape(num_blocks)
        return [torch.empty(shape, dtype=spec.kv_dtype, device=spec.device) for _ in range(spec.num_layers)]
    except RuntimeError as error:  # the operating system or the GPU does not have that much
        raise UserError(
            f"no memory for a KV cache of {num_blocks} blocks ({size_text(num_blocks * spec.kv_block_bytes())}); "
            f"lower {spelled('max_tokens_in_paged_kv_cache')} or {spelled('kv_cache_free_gpu_memory_fraction')}"
        ) from error
