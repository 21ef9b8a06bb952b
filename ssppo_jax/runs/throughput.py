"""How fast an iteration trained: tokens and useful floating-point operations a second, and how much was padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from ssppo_jax.data import bucket_of
from ssppo_jax.models import flops
from ssppo_jax.models.arch import Arch
from ssppo_jax.runs.chips import chip_of
from ssppo_jax.types import Batch


class Work(NamedTuple):
    """What an iteration's optimizer steps have to do."""

    tokens: int  # real ones, prompts once
    slots: int  # as computed, padding included
    flops: float  # of real tokens, recomputation not counted

    @property
    def padding_share(self) -> float:
        return 1.0 - self.tokens / self.slots


def work_of(
    arch: Arch,
    batch: Batch,  # NumPy, the rollout
    steps: Sequence[np.ndarray],  # rows of each optimizer step
    *,
    size: int,  # rows a step is filled up to
    buckets: Sequence[int],
    adapters: bool,
) -> Work:
    """Summed over the steps."""
    length, own = batch.prompt_length, batch.mask.sum(-1)
    tokens = slots = count = 0
    for rows in steps:
        tokens += int(length[rows].sum() + own[rows].sum())
        slots += size * (bucket_of(length[rows], buckets) + int(np.prod(batch.mask.shape[1:])))
        count += flops.train_step(arch, length[rows], own[rows], adapters=adapters)
    return Work(tokens, slots, count)


def pace_of(work: Work, seconds: float) -> dict[str, float]:
    """Rates; `mfu` (of the chips' bfloat16 peak) only on chips whose peak is known."""
    rate = work.flops / seconds
    found = {"train_seconds": seconds, "train_tokens_per_second": work.tokens / seconds, "train_tflops": rate / 1e12}
    devices = jax.devices()
    chip = chip_of(devices[0].device_kind)
    return found | ({"mfu": rate / (chip.flops * len(devices))} if chip else {})
