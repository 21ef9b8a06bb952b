"""What accelerators can do at most: the numbers that utilisation and rooflines are measured against."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as its maker publishes it."""

    name: str
    device_kinds: tuple[str, ...]  # what JAX calls it, in part, lower case
    flops: float  # bfloat16 multiply-adds, counted as two, per second
    memory: float  # bytes of HBM
    bandwidth: float  # bytes per second to HBM
    link: float  # bytes per second to other chips, all links together, one direction


# TPU: cloud.google.com/tpu/docs (system architecture pages); GPU: NVIDIA's data sheets, dense, SXM
CHIPS = (
    Chip("v4", ("tpu v4",), 275e12, 32 * 2**30, 1228e9, 300e9),
    Chip("v5e", ("tpu v5 lite", "tpu v5e"), 197e12, 16 * 2**30, 819e9, 200e9),
    Chip("v5p", ("tpu v5p", "tpu v5"), 459e12, 95 * 2**30, 2765e9, 600e9),
    Chip("v6e", ("tpu v6 lite", "tpu v6e"), 918e12, 32 * 2**30, 1640e9, 448e9),
    Chip("a100", ("a100",), 312e12, 80 * 2**30, 2039e9, 300e9),
    Chip("h200", ("h200",), 989e12, 141 * 2**30, 4800e9, 450e9),
    Chip("h100", ("h100",), 989e12, 80 * 2**30, 3350e9, 450e9),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX describes by `device_kind`; None for a CPU or one that is not listed."""
    kind = device_kind.lower()
    return next((chip for chip in CHIPS if any(known in kind for known in chip.device_kinds)), None)
