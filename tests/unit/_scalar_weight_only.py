"""Quantizing and packing by TensorRT-LLM's description, value by value in plain Python: the reference for tests.

Shares nothing with the package: matrices are lists of rows `[in][out]`, each of the four steps is done on its own.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import numpy as np

Matrix = list[list[int]]
ROW_ORDER = {
    8: [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15],
    4: [0, 1, 8, 9, 16, 17, 24, 25, 2, 3, 10, 11, 18, 19, 26, 27]
    + [4, 5, 12, 13, 20, 21, 28, 29, 6, 7, 14, 15, 22, 23, 30, 31],
}
WORD_ORDER = {8: [0, 2, 1, 3], 4: [0, 2, 4, 6, 1, 3, 5, 7]}


def quantize_channel(weights: list[float], bits: int) -> tuple[list[int], float]:
    """Return the integers and the fp32 scale of one output channel."""
    scale = np.float32(max(abs(w) for w in weights)) / np.float32(2 ** (bits - 1))
    if scale == 0:
        return [0] * len(weights), 0.0
    return [_round_and_clamp(float(np.float32(w) / scale), bits) for w in weights], float(scale)


def _round_and_clamp(quotient: float, bits: int) -> int:
    rounded = int(Decimal(quotient).to_integral_value(ROUND_HALF_UP))  # rounds the magnitude, so half away from zero
    return max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, rounded))


def pack(matrix: Matrix, bits: int, sm: int) -> bytes:
    """Return the bytes of a matrix `[in][out]` of signed integers in the layout of a GPU."""
    rows, columns = len(matrix), len(matrix[0])
    order = ROW_ORDER[bits]
    permuted = [matrix[row - row % len(order) + order[row % len(order)]] for row in range(rows)]
    flat = [permuted[row][column] for column in range(columns) for row in range(rows)]
    if sm != 90:
        flat = _interleave(flat, rows, columns, bits)
    unsigned = [value + 2 ** (bits - 1) for value in flat]
    per_word = 32 // bits
    shuffled = [unsigned[i - i % per_word + WORD_ORDER[bits][i % per_word]] for i in range(len(unsigned))]
    if bits == 8:
        return bytes(shuffled)
    return bytes(low | high << 4 for low, high in zip(shuffled[::2], shuffled[1::2], strict=True))


def _interleave(flat: list[int], rows: int, columns: int, bits: int) -> list[int]:
    """Put the pieces of 64 rows of every group of columns one after another."""
    group = {8: 2, 4: 4}[bits]
    laid: list[int] = []
    for first in range(0, columns, group):
        for tile in range(0, rows, 64):
            for column in range(first, first + group):
                laid += flat[column * rows + tile : column * rows + tile + 64]
    return laid
