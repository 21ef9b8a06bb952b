"""Batch texts of many lengths into few array shapes, padded to powers of two."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

SHORTEST = 16


def buckets(
    lengths: Sequence[int], max_length: int, batch_size: int, shortest: int = SHORTEST
) -> list[tuple[list[int], int]]:
    """Return (rows, token slots) of each call of a model: rows of one length bucket, at most
    `batch_size`.
    """
    held: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        slots = max(shortest, 1 << (length - 1).bit_length())
        held.setdefault(min(slots, max_length), []).append(row)
    return [
        (rows[start : start + batch_size], slots)
        for slots, rows in sorted(held.items())
        for start in range(0, len(rows), batch_size)
    ]


def padded(
    ids: Sequence[Sequence[int]], slots: int, batch_size: int, *, few: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens [R,S], length [R]), right-padded; rows that fill the shape have length 0."""
    rows = max(1, batch_size // 8)
    return right_padded(ids, (rows if few and len(ids) <= rows else batch_size, slots))


def right_padded(
    ids: Iterable[Sequence[int] | np.ndarray], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens of this shape, their lengths), int32, of rows of ids in order; 0 is padding.

    The last axis are token slots. Rows that no ids are given for have length 0.
    """
    *rows, slots = shape
    count = math.prod(rows)
    tokens, length = np.zeros((count, slots), np.int32), np.zeros(count, np.int32)
    for row, own in enumerate(ids):
        tokens[row, : len(own)], length[row] = own, len(own)
    return tokens.reshape(shape), length.reshape(rows)
