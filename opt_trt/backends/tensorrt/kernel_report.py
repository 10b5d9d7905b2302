"""The tables about an engine that a build prints: its plan before, its kernels after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opt_trt.backends.tensorrt.bindings import GENERATION, PROMPT
from opt_trt.backends.tensorrt.engine_memory import EngineMemory
from opt_trt.backends.tensorrt.engine_plan import EnginePlan
from opt_trt.backends.tensorrt.kernels import Kernel, KernelTable, Value
from opt_trt.host.disk import size_text

PHASES = {PROMPT: "prompt", GENERATION: "generation"}
SLOTS_SHOWN = (1, 8, 64)
NEVER_RUN = "built and checked, never yet run on a GPU"
UNREADABLE = "kernels           unknown: this library prints them in another form than TensorRT-RTX 1.7"


@dataclass(frozen=True)
class Judgement:
    """A property of a good engine: what is counted, the count that is wished for, and what it costs otherwise."""

    what: str
    count: int
    wished: int
    costs: str


def plan_lines(plan: EnginePlan, memory: EngineMemory, library: str, output_dir: str) -> list[str]:
    """Return what `--dry_run` prints."""
    model, limits, shape = plan.model, plan.limits, plan.shape
    slots = [count for count in SLOTS_SHOWN if count < shape.slots] + [shape.slots]
    caches = ", ".join(f"{count}: {size_text(count * memory.slot)}" for count in slots)
    whole = ", ".join(f"{count}: {size_text(memory.fixed + count * memory.slot)}" for count in slots)
    rows = (
        ("backend", f"tensorrt with {library}, for {described_targets(plan.target_sms)}; {NEVER_RUN}"),
        ("model", f"{model.num_hidden_layers} layers, hidden {model.hidden_size}, {model.dtype}, weights "
                  f"{model.quant_algo or model.dtype}"),
        ("head", limits.lm_head_precision or model.dtype),
        ("limits", f"{limits.max_batch_size} sequences, prompt {limits.max_input_len}, total {limits.max_seq_len} "
                   "tokens"),
        ("prompts", f"up to {shape.most_tokens} tokens at a time, kernels for {shape.usual_tokens}"),
        ("engine", f"about {size_text(memory.weights + memory.code)}: weights {size_text(memory.weights)}, code "
                   f"{size_text(memory.code)}"),
        ("activations", f"about {size_text(memory.prompt)} in prompts, {size_text(memory.generation)} in generation"),
        ("caches", f"{size_text(memory.slot)} a sequence, whatever its length; by sequences: {caches}"),
        ("GPU memory", f"by sequences: {whole}"),
        ("output", f"{output_dir} (nothing is written in a dry run)"),
    )  # fmt: skip
    return [f"{name:<18}{value}" for name, value in rows]


def described_targets(target_sms: Sequence[int]) -> str:
    """Name the GPUs of an engine."""
    return f"SM {' '.join(map(str, target_sms))}" if target_sms else "the GPU of this machine"


def judgements(table: KernelTable) -> list[Judgement]:
    """Return what can be judged of an engine without a GPU."""
    layers, widened = table.num_layers, table.widened(GENERATION)
    return [
        Judgement(f"layers of {layers} with fused attention", table.fused(GENERATION), layers, "scores lie in memory"),
        Judgement("kernels that copy a cache", table.copies(GENERATION), 0, "every step moves it whole"),
        Judgement("kernels that widen weights", widened, 0, "every step writes them in the wide type"),
    ]


def kernel_lines(table: KernelTable | None, is_detailed: bool) -> list[str]:
    """Return the lines about kernels: a line a phase, what is not as wished, and if detailed every kernel."""
    if table is None:
        return [UNREADABLE]
    head = (
        f"{'phase':<12}{'kernels':>8}{'a layer':>9}{'attention fused':>17}{'caches copied':>15}{'weights widened':>17}"
    )
    lines = [f"{head}{'activations':>15}"]
    for profile, phase in PHASES.items():
        fused = f"{table.fused(profile)} of {table.num_layers}"
        lines.append(
            f"{phase:<12}{len(table.of(profile)):>8}{table.a_layer(profile):>9}{fused:>17}{table.copies(profile):>15}"
            f"{table.widened(profile):>17}{size_text(table.activation_bytes[profile]):>15}"
        )
    lines += [
        f"note: {judged.count} {judged.what} in generation, expected {judged.wished}: {judged.costs}"
        for judged in judgements(table)
        if judged.count != judged.wished
    ]
    return lines + (_all_kernels(table) if is_detailed else [])


def _all_kernels(table: KernelTable) -> list[str]:
    lines = []
    for profile, phase in PHASES.items():
        layers = table.layers(profile)
        for place, kernel in enumerate(table.of(profile)):
            layer = layers.get(place, "")
            lines.append(f"{phase:<12}{place:>4} {layer:>5}  {kernel.name}  {_written(kernel)}")
    return [f"{'phase':<12}{'':>4} {'layer':>5}  kernel  what it writes, and the weights that it reads", *lines]


def _written(kernel: Kernel) -> str:
    weights = [value for value in kernel.constants if len(value.shape) > 1 and max(value.shape) > 1]
    read = f" with {', '.join(map(_short, weights))}" if weights else ""
    return f"{', '.join(map(_short, kernel.outputs))}{read}"


def _short(value: Value) -> str:
    return f"{value.dtype.lower()}[{','.join(map(str, value.shape))}]"
