"""What an iteration's pace is made of."""

from pathlib import Path

import jax
import numpy as np
import pytest

from ssppo_jax.data import Cut
from ssppo_jax.models import flops
from ssppo_jax.models.arch import tiny_arch
from ssppo_jax.runs import throughput as pace
from ssppo_jax.runs.throughput import memory_peaks
from ssppo_jax.types import Batch

ARCH = tiny_arch()


def rollout(prompt_length, own):
    b, k, t = len(prompt_length), len(own[0]), 8
    fields = dict.fromkeys(Batch._fields, np.zeros(b))
    mask = (np.arange(t) < np.array(own)[..., None]).astype(np.float32)
    fields |= {
        "prompt_length": np.array(prompt_length),
        "mask": mask,
        "completion": np.zeros((b, k, t), int),
    }
    return Batch(**fields)


def test_padding_is_what_is_computed_and_is_no_token():
    batch = rollout([3, 10, 4], [[8, 2], [8, 8], [1, 0]])
    steps = [np.array([0, 2]), np.array([1])]  # the second is filled up to two rows
    cut = Cut(size=2, ways=1, prompt_buckets=(4, 12), completion_buckets=(8,))
    work = pace.work_of(ARCH, batch, steps, cut, adapters=False)
    assert work.tokens == 3 + 10 + 4 + 8 + 2 + 8 + 8 + 1
    assert work.slots == 2 * (4 + 16) + 2 * (12 + 16)
    assert work.padding_share == pytest.approx(1 - 44 / 96)
    each = [
        flops.train_step(ARCH, np.array([p]), np.array([own]))
        for p, own in ((3, [8, 2]), (10, [8, 8]), (4, [1, 0]))
    ]
    assert work.flops == pytest.approx(sum(each))


def test_utilisation_is_given_where_the_peak_is_known(monkeypatch):
    work = pace.Work(100, 200, 6e12)
    found = pace.pace_of(work, 2.0)
    assert found == {"train_seconds": 2.0, "train_tokens_per_second": 50.0, "train_tflops": 3.0}

    class Device:
        device_kind = "TPU v5 lite"

    monkeypatch.setattr(jax, "devices", lambda: [Device()] * 4)
    assert pace.pace_of(work, 2.0)["mfu"] == pytest.approx(3e12 / (4 * 197e12))


@pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="the kernel's account is Linux's"
)
def test_the_peak_of_this_process_is_the_kernels():
    np.ones(2**25)  # so that it is not the start's
    said = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    assert memory_peaks()["host_peak_gib"] == pytest.approx(int(said.split()[1]) / 2**20, rel=0.02)
