"""Find finite values of a source that look damaged, in the numbers that its conversion computes anyway."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from statistics import median

import torch

from opt_trt.sources.opt import POSITIONS, Source
from opt_trt.sources.published import PUBLISHED

PAD_ROW = 1  # its number in the position table
# A value is suspicious if it is this many times the median of the other layers. A flipped high exponent bit multiplies
# an fp16 value by 65,536, so 100 finds it in all but the smallest values: trained matrices of one kind have one scale.
# Vectors (layer norms, biases) may differ much more from layer to layer in a healthy model.
MATRIX_FACTOR = 100
VECTOR_FACTOR = 1000


def pad_row_warning(source: Source, positions: torch.Tensor) -> str | None:
    """Return a warning if the pad row of a position table `[P + 2, E]` is not zero, as it is in every published OPT.

    Models of other sizes may have been initialized in another way, so they get no warning.
    """
    largest = positions[PAD_ROW].abs().max().item()
    if largest == 0 or (source.config.hidden_size, source.config.num_hidden_layers) not in PUBLISHED:
        return None
    return (
        f"{source.where(POSITIONS)} reaches {largest:.6g} in row {PAD_ROW}, which is zero in every published OPT: "
        "harmless if the model was trained on, else its tensors are out of place; compare it with the original"
    )


def outlier_warnings(source: Source, largest: Mapping[str, float]) -> Iterator[str]:
    """Yield a line for every tensor whose largest absolute value is far above that of its twins in other layers."""
    by_part: dict[str, dict[str, float]] = defaultdict(dict)
    for name, value in largest.items():
        head, layers, tail = name.partition("decoder.layers.")
        if layers and not head:
            by_part[tail.partition(".")[2]][name] = value
    for tensors in by_part.values():
        for name, value in tensors.items():
            others = median([v for other, v in tensors.items() if other != name] or [value])
            if others > 0 and value > others * _factor(name):
                yield (
                    f"{source.where(name)} reaches {value:.6g}, {value / others:,.0f} times the median of the other "
                    f"layers ({others:.3g}): the file may be damaged; compare its checksum, or fetch it again"
                )


def _factor(name: str) -> int:
    return VECTOR_FACTOR if name.endswith(".bias") or "layer_norm" in name else MATRIX_FACTOR
