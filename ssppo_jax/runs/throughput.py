"""Measure an iteration's training pace and peak memory; list the limits of accelerators."""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from ssppo_jax.data import Cut, bucket_of
from ssppo_jax.errors import ConfigError
from ssppo_jax.models import flops
from ssppo_jax.models.arch import Arch
from ssppo_jax.types import Batch


class Work(NamedTuple):
    """Hold what an iteration's optimizer steps have to do."""

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
    cut: Cut,
    *,
    adapters: bool,
) -> Work:
    """Count the work of an iteration, summed over its optimizer steps.

    In streams without padding (`Cut.padding_free`) the slots are those of the dense layers;
    attention pads within its own products."""
    length, own = np.asarray(batch.prompt_length), np.asarray(batch.mask).sum(-1)
    tokens = slots = 0
    count = 0.0
    for rows in steps:
        tokens += int(length[rows].sum() + own[rows].sum())
        slots += slots_of(cut, length, own, rows)
        count += flops.train_step(arch, length[rows], own[rows], adapters=adapters)
    return Work(tokens, slots, count)


def slots_of(cut: Cut, prompt: np.ndarray, own: np.ndarray, rows: np.ndarray) -> int:
    """Count the tokens that a step on some rows computes, padding included, over all devices."""
    if cut.by_length:
        return sum(micro.slots(own.shape[1], cut.ways) for micro in cut(prompt, own, rows))
    width = bucket_of(prompt[rows], cut.prompt_buckets)
    return cut.size * cut.parts * (width + own.shape[1] * cut.completion_buckets[-1])


def pace_of(work: Work, seconds: float) -> dict[str, float]:
    """Return the rates; `mfu` (of the chips' bfloat16 peak) only on chips whose peak is known."""
    rate = work.flops / seconds
    found = {
        "train_seconds": seconds,
        "train_tokens_per_second": work.tokens / seconds,
        "train_tflops": rate / 1e12,
    }
    devices = jax.devices()
    chip = chip_of(devices[0].device_kind)
    return found | ({"mfu": rate / (chip.flops * len(devices))} if chip else {})


@dataclasses.dataclass(frozen=True)
class Chip:
    """Describe one accelerator, as its maker publishes it."""

    name: str
    device_kinds: tuple[str, ...]  # what JAX calls it, in part, lower case
    flops: float  # bfloat16 multiply-adds, counted as two, per second
    memory: float  # bytes of HBM
    bandwidth: float  # bytes per second to HBM
    link: float  # bytes per second to other chips, all links together, one direction
    nic: float  # bytes per second to another node or slice, one direction


# TPU: cloud.google.com/tpu/docs (system architecture pages), and for a chip's share of its host's
# network "How to Scale Your Model"; GPU: NVIDIA's data sheets, dense, SXM, with one InfiniBand
# adapter a GPU as in DGX systems
CHIPS = (
    Chip("v4", ("tpu v4",), 275e12, 32 * 2**30, 1228e9, 300e9, 6.25e9),
    Chip("v5e", ("tpu v5 lite", "tpu v5e"), 197e12, 16 * 2**30, 819e9, 200e9, 3.125e9),
    Chip("v5p", ("tpu v5p", "tpu v5"), 459e12, 95 * 2**30, 2765e9, 600e9, 6.25e9),
    Chip("v6e", ("tpu v6 lite", "tpu v6e"), 918e12, 32 * 2**30, 1640e9, 448e9, 12.5e9),
    Chip("a100", ("a100",), 312e12, 80 * 2**30, 2039e9, 300e9, 25e9),
    Chip("h200", ("h200",), 989e12, 141 * 2**30, 4800e9, 450e9, 50e9),
    Chip("h100", ("h100",), 989e12, 80 * 2**30, 3350e9, 450e9, 50e9),
    Chip("b200", ("b200",), 2250e12, 180 * 2**30, 7700e9, 900e9, 50e9),
)


def chip_of(device_kind: str) -> Chip | None:
    """Return the chip that JAX describes by `device_kind`; None for a CPU or one that is not
    listed.
    """
    kind = device_kind.lower()
    return next((chip for chip in CHIPS if any(known in kind for known in chip.device_kinds)), None)


def device_memory(device: jax.Device) -> float:
    """Return the bytes that a device lets a program have.

    A running device says it; of one that is only described, the maker does. CPU devices share the
    host's memory, half of which is counted.

    Raises:
      ConfigError: neither is known.
    """
    if device.platform == "cpu":
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return host / 2 / jax.local_device_count()
    try:
        said = (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # only described
        said = None
    if said is not None:
        return float(said)
    chip = chip_of(device.device_kind)
    if chip is None:
        raise ConfigError(
            f"sampling.batch_size=0: {device.device_kind!r} does not say its memory; set a number"
        )
    return float(chip.memory)


GIB = 2**30


def memory_peaks() -> dict[str, float]:
    """Return `host_peak_gib` and, where the backend says it, `device_peak_gib` of the fullest
    device.

    The first is of the process since its start, compilation included. A CPU's memory is the host's.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    found = {"host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    used = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return found | ({"device_peak_gib": max(used) / GIB} if used else {})
