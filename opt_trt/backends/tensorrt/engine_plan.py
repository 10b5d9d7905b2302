"""The engine that a build will make of a checkpoint: limits, sizes and GPUs, or why it cannot be built."""

from __future__ import annotations

from dataclasses import dataclass, replace

from opt_trt.backends.engine import Limits
from opt_trt.backends.tensorrt.bindings import EngineShape
from opt_trt.backends.tensorrt.engine_shape import engine_shape, most_slots
from opt_trt.backends.tensorrt.narrow_weights import HEAD, group_size
from opt_trt.config.backend_answers import ANSWERS, EMBEDDED, PROPER_ANSWERS, RTX_ANSWERS
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.flags import refuse_given
from opt_trt.errors import UserError, spelled
from opt_trt.model.config import ModelConfig

KNOWN_SMS = (75, 80, 86, 89, 120, 121)  # the targets of TensorRT-RTX 1.7
TURING = 75
QKV = "transformer.layers.0.attention.qkv.weight"
LEAST_FUSED_HEADS = 4
BUILDER_FLAGS = {"weight_streaming": "WEIGHT_STREAMING", "weight_sparsity": "SPARSE_WEIGHTS"}  # the library's names


@dataclass(frozen=True)
class EnginePlan:
    """An engine before it is built."""

    model: ModelConfig
    limits: Limits
    shape: EngineShape
    target_sms: tuple[int, ...]  # none with TensorRT proper, which builds for the GPU of this machine
    builder_flags: tuple[str, ...]
    asked_slots: int  # `max_batch_size` as it was given

    @property
    def warnings(self) -> list[str]:
        """The notes that a user should read before the build."""
        found = []
        if self.asked_slots > self.shape.slots:
            found.append(
                f"max_batch_size {self.asked_slots} becomes {self.shape.slots}: a cache has at most 2^31 elements"
            )
        if self.model.local_heads < LEAST_FUSED_HEADS:
            heads = self.model.local_heads
            found.append(f"TensorRT fuses attention of {LEAST_FUSED_HEADS} heads or more, this model has {heads}")
        return found


def plan_engine(model: ModelConfig, config: BuildConfig, is_rtx: bool) -> EnginePlan:
    """Return what `config` asks for; `UserError` names what TensorRT-RTX, or else TensorRT, cannot build."""
    for refused in (ANSWERS["tensorrt"], RTX_ANSWERS if is_rtx else PROPER_ANSWERS):
        refuse_given(config, refused)
    _check_model(model, config)
    targets = _targets(model, config) if is_rtx else ()
    _check_groups(model, config.lm_head_precision)
    limits = _limits(model, config)
    shape = engine_shape(model, limits, config.opt_num_tokens)
    if shape.usual_tokens > shape.most_tokens:
        raise UserError(
            f"{spelled('opt_num_tokens')} {shape.usual_tokens} is more than the {shape.most_tokens} tokens that a "
            "prompt has in one step; give at most as many"
        )
    return EnginePlan(
        model=replace(model, logits_dtype=config.logits_dtype or model.logits_dtype),
        limits=limits,
        shape=shape,
        target_sms=targets,
        builder_flags=tuple(flag for name, flag in BUILDER_FLAGS.items() if getattr(config, name)),
        asked_slots=config.max_batch_size,
    )


def _limits(model: ModelConfig, config: BuildConfig) -> Limits:
    max_seq_len = config.longest_sequence(model.max_position_embeddings)
    return Limits(
        max_batch_size=min(config.max_batch_size, most_slots(model, max_seq_len)),
        max_input_len=min(config.max_input_len, max_seq_len, config.max_num_tokens),
        max_seq_len=max_seq_len,
        max_num_tokens=config.max_num_tokens,
        tokens_per_block=max_seq_len,
        gather_context_logits=config.gather_context_logits or config.gather_all_token_logits,
        gather_generation_logits=config.gather_generation_logits or config.gather_all_token_logits,
        lm_head_precision=config.lm_head_precision,
        kv_cache_type="CONTINUOUS",
    )


def _check_model(model: ModelConfig, config: BuildConfig) -> None:
    mapping = model.mapping
    if mapping.world_size > 1:
        raise UserError(
            f"{config.checkpoint_dir} has tp_size {mapping.tp_size} and pp_size {mapping.pp_size}, and TensorRT "
            f"engines of this version have one rank; convert with {spelled('tp_size')} 1 {spelled('pp_size')} 1, or "
            f"{EMBEDDED}"
        )


def _check_groups(model: ModelConfig, lm_head_precision: str | None) -> None:
    """Refuse int4 weights that no group fits; features within an MLP are filled up, so that one always does."""
    precisions = {QKV: model.quant_algo == "W4A16", HEAD: lm_head_precision == "int4"}
    for name in (name for name, is_int4 in precisions.items() if is_int4):
        group_size(name, model.hidden_size)


def _targets(model: ModelConfig, config: BuildConfig) -> tuple[int, ...]:
    """Return the GPUs to build for, each as its SM; `UserError` names the ones that cannot run the model."""
    asked = tuple(sorted(set(config.target_sm or ()))) or tuple(sm for sm in KNOWN_SMS if sm > TURING)
    if unknown := [sm for sm in asked if sm not in KNOWN_SMS]:
        raise UserError(
            f"{spelled('target_sm')} {' '.join(map(str, unknown))}: TensorRT-RTX has engines for SM "
            f"{', '.join(map(str, KNOWN_SMS))}, not for data-center GPUs since SM 90; give some of these, or "
            f"{spelled('backend')} inductor {spelled('device')} cuda on the GPU itself"
        )
    precisions = {model.quant_algo, config.lm_head_precision} & {"W4A16", "int4"}
    if TURING in asked and (model.dtype != "float16" or precisions):
        found = f"dtype {model.dtype}, weights {'int4' if precisions else model.dtype}"
        raise UserError(
            f"{spelled('target_sm')} {TURING} has kernels for float16, alone or with int8 weights, found {found}; drop "
            f"{TURING}, or convert with {spelled('dtype')} float16"
        )
    return asked
