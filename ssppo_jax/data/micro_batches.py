"""Cut rows into micro-batches of like length, padded to few shapes or packed into streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ssppo_jax.data.batches import bucket_of

MISSES = 32  # rows in turn that do not fit before a stream is closed
FULL = 0.9  # share of a stream that must be filled, else a shorter one is taken
SHORTEST_STREAM = 8  # the last micro-batches may have max_token_len / 2, / 4 or / 8 tokens


class MicroBatch(NamedTuple):
    """Hold the rows of one forward pass and the shape that they are laid out in."""

    rows: np.ndarray  # positions in the rollout, one device's after the other's; -1: filler
    prompt: int  # P
    completion: int  # T
    stream: int = 0  # tokens of each device's stream; 0: every row has its P + K*T slots

    def slots(self, samples: int, ways: int) -> int:
        """Return the tokens that are computed, padding included, over all devices."""
        if self.stream:
            return self.stream * ways
        return len(self.rows) * (self.prompt + samples * self.completion)


@dataclasses.dataclass(frozen=True)
class Cut:
    """Cut rows into micro-batches: by a number of rows, or by tokens where a number is given.

    Which rows are cut is the caller's choice and is not changed. Longer rows come first. Each
    micro-batch takes the smallest buckets that hold its rows.

    Args:
      size: rows of a micro-batch over all devices; with `max_token_len`, at most so many.
      ways: devices that rows are split over.
      prompt_buckets: allowed P, increasing.
      completion_buckets: allowed T, increasing; the last holds every completion.
      max_token_len: tokens of a micro-batch on one device; 0: micro-batches have `size` rows.
      parts: micro-batches of a step whose rows are not cut by length.
      padding_free: whether rows are packed into one stream a device, so that `max_token_len`
        counts real tokens. Otherwise it counts slots.
    """

    size: int
    ways: int
    prompt_buckets: Sequence[int]
    completion_buckets: Sequence[int]
    max_token_len: int = 0
    padding_free: bool = False
    parts: int = 1

    @property
    def by_length(self) -> bool:
        """Say whether anything is cut by length at all."""
        return len(self.completion_buckets) > 1 or self.max_token_len > 0

    def __call__(
        self,
        prompt: np.ndarray,  # [M] tokens
        own: np.ndarray,  # [M,K] tokens of the completions
        rows: np.ndarray,  # which of the M
    ) -> list[MicroBatch]:
        """Return micro-batches that hold each of `rows` once."""
        lengths = _Lengths(np.asarray(prompt, int), np.asarray(own, int))
        order = rows[np.lexsort((-lengths.total[rows], -lengths.longest[rows]))]
        if self.padding_free:
            return self._streams(lengths, order)
        found = []
        while len(order):
            size = self._rows_that_fit(lengths, order) if self.max_token_len else self.size
            rows, order = order[:size], order[size:]
            filled = np.pad(rows, (0, size - len(rows)), constant_values=-1)
            found.append(self._shaped(lengths, filled, 0))
        return found

    def _rows_that_fit(self, lengths: _Lengths, order: np.ndarray) -> int:
        """Return the rows of the next micro-batch; halved while half of them holds the rest."""
        width = bucket_of(lengths.prompt[order], self.prompt_buckets)
        width += lengths.samples * bucket_of(lengths.longest[order], self.completion_buckets)
        each = max(1, min(self.max_token_len // width, self.size // self.ways))
        while each > 1 and len(order) <= -(-each // 2) * self.ways:
            each = -(-each // 2)
        return each * self.ways

    def _shaped(self, lengths: _Lengths, rows: np.ndarray, stream: int) -> MicroBatch:
        real = rows[rows >= 0]
        p = bucket_of(lengths.prompt[real], self.prompt_buckets)
        t = bucket_of(lengths.longest[real], self.completion_buckets)
        return MicroBatch(rows, p, t, stream)

    def _streams(self, lengths: _Lengths, order: np.ndarray) -> list[MicroBatch]:
        found, waiting = [], order.tolist()
        while waiting:
            stream = self._stream(lengths.total[waiting])
            bins, waiting = _fill(lengths.total, waiting, stream, self.ways)
            count = _few(max(map(len, bins)))
            rows = [mine + [-1] * (count - len(mine)) for mine in bins]
            found.append(self._shaped(lengths, np.array(rows).reshape(-1), stream))
        return found

    def _stream(self, total: np.ndarray) -> int:
        """Return the tokens of the next streams: the longest that the rows that wait fill."""
        stream, shortest = self.max_token_len, -(-self.max_token_len // SHORTEST_STREAM)
        share, longest = total.sum() / self.ways, total.max()
        while -(-stream // 2) >= max(shortest, longest) and share < FULL * stream:
            stream = -(-stream // 2)
        return stream


def cut_of(config: ConfigDict, ways: int) -> Cut:
    """Return the configured cut of rows over `ways` devices."""
    c, t = config.train, config.sampling.max_new_tokens
    return Cut(
        size=c.batch_size if c.max_token_len else c.batch_size // c.micro_batches,
        ways=ways,
        prompt_buckets=config.data.prompt_buckets,
        completion_buckets=(*(b for b in config.data.completion_buckets if 0 < b < t), t),
        max_token_len=c.max_token_len,
        padding_free=c.padding_free,
        parts=c.micro_batches,
    )


class _Lengths:
    """Hold the lengths that rows are ordered by."""

    def __init__(self, prompt: np.ndarray, own: np.ndarray):
        self.prompt, self.samples = prompt, own.shape[1]
        self.longest, self.total = own.max(1), prompt + own.sum(1)


def _fill(
    total: np.ndarray, waiting: list[int], stream: int, ways: int
) -> tuple[list[list[int]], list[int]]:
    """Put rows, the longest first, where most room is; return the streams and who still waits."""
    room, misses = np.full(ways, stream), 0
    bins: list[list[int]] = [[] for _ in range(ways)]
    left: list[int] = []
    for row in waiting:
        emptiest = int(room.argmax())
        if misses < MISSES and total[row] <= room[emptiest]:
            bins[emptiest].append(row)
            room[emptiest] -= total[row]
        else:
            left.append(row)
            misses += 1
    return bins, left


def _few(count: int) -> int:
    """Round up to 1, 2, 3, 4, 6, 8, 12, ...: few shapes, each with its program."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power
