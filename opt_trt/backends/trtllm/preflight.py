"""Refuse, before minutes are spent, what TensorRT-LLM cannot build or would silently build wrongly."""

from __future__ import annotations

from pathlib import Path

from opt_trt.backends.trtllm.release import Release
from opt_trt.checkpoint.packing import DEFERRED_ONLY, is_interleaved
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.checkpoint.spec import packed_mode, unloadable
from opt_trt.config.build_flags import BuildConfig
from opt_trt.errors import UserError, spelled
from opt_trt.model.config import ModelConfig

REPACK = "python -m opt_trt repack --checkpoint_dir {directory} --target_sm {sm} --output_dir NEW"
HOPPER = 90  # its layout of packed weights changed between releases
SM90_LAYOUT_SINCE = Release(1, 2)


def check(checkpoint: Checkpoint, config: BuildConfig, release: Release, sm: int | None) -> None:
    """Refuse a checkpoint that `release` cannot build for a GPU of compute capability `sm` (None: any)."""
    model, directory = checkpoint.config, checkpoint.directory
    _check_model(model, directory)
    if config.multiple_profiles == "enable" and config.opt_num_tokens is not None:
        raise UserError(
            f"{spelled('multiple_profiles')} enable chooses its own optima: drop it, or {spelled('opt_num_tokens')}"
        )
    if model.quant_algo is not None:
        _check_quantized(model, directory, release, sm)
    for rank in range(model.mapping.world_size):
        checkpoint.of_rank(rank)  # names, shapes and dtypes of every rank


def _check_model(model: ModelConfig, directory: Path) -> None:
    pp_size = model.mapping.pp_size
    if pp_size > 1:
        raise UserError(
            f"{directory} has pp_size {pp_size}, and TensorRT-LLM's OPT has no pipeline parallelism; convert with "
            f"{spelled('tp_size')} {model.mapping.world_size} {spelled('pp_size')} 1, or give {spelled('backend')} "
            "inductor"
        )
    if model.do_layer_norm_before and not model.has_final_layer_norm:
        raise UserError(
            f"{directory} has no final layer norm, and TensorRT-LLM's pre-norm OPT always has; "
            f"give {spelled('backend')} inductor"
        )


def _check_quantized(model: ModelConfig, directory: Path, release: Release, sm: int | None) -> None:
    """Refuse weight-only linears that the loader or the GPU's kernels cannot read."""
    if ragged := unloadable(model):
        raise UserError(
            f"{directory}: TensorRT-LLM's weight-only linears have multiples of 64 features a rank, found "
            f"{', '.join(ragged)}; convert with a smaller {spelled('tp_size')} or without {spelled('use_weight_only')}"
        )
    if sm in DEFERRED_ONLY:
        raise UserError(
            f"{directory} has quant_algo {model.quant_algo}, which TensorRT-LLM does not build for SM {sm} (100 to "
            f"119); convert without {spelled('use_weight_only')}, or give {spelled('backend')} inductor"
        )
    if packed_mode(model) is None:
        return
    assert model.target_sm is not None
    if sm is not None and is_interleaved(sm) != is_interleaved(model.target_sm):
        raise UserError(
            f"{directory} is packed for SM {model.target_sm}, and the GPU here, SM {sm}, would compute garbage from "
            f"it; pack it again: {REPACK.format(directory=directory, sm=sm)}"
        )
    if HOPPER in (sm, model.target_sm) and release < SM90_LAYOUT_SINCE:
        raise UserError(
            f"{directory} is packed for SM {HOPPER} as TensorRT-LLM {SM90_LAYOUT_SINCE} reads it, and {release} may "
            f"read another layout; convert with {spelled('defer_quantization')}, or install tensorrt_llm==1.2.1"
        )
