import os
import subprocess
import sys

import pytest

from ssppo_jax.sweep import cores


@pytest.mark.parametrize(
    ("have", "parts", "shares"),
    [
        ([0, 1, 2, 3], 2, [[0, 1], [2, 3]]),
        ([4, 5, 6, 9, 11], 2, [[4, 5], [6, 9, 11]]),
        ([0, 1], 3, [[0], [0], [1]]),
        ([7], 2, [[7], [7]]),
    ],
)
def test_every_part_has_a_core_and_every_core_has_work(have, parts, shares):
    assert cores.shares(have, parts) == shares


def test_what_runs_inside_uses_its_share_and_sums_as_if_it_had_every_core(monkeypatch):
    """XLA's pool has NPROC threads whatever the affinity: so runs side by side give the same
    numbers."""
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("NPROC", "3")  # kept: it is the user's
    before = cores.available()
    code = (
        "import os, jax; (jax.numpy.ones((300, 300)) @ jax.numpy.ones((300,"
        " 300))).block_until_ready()\nnames = [open(f'/proc/self/task/{t}/comm').read().strip() for"
        " t in os.listdir('/proc/self/task')]\nprint(sorted(os.sched_getaffinity(0)),"
        " names.count('tf_XLAEigen'))"
    )
    with cores.held_to(before[:1]) as environment:
        out = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        ).stdout
    assert out == f"{before[:1]} 3\n"
    assert cores.available() == before
    monkeypatch.delenv("NPROC")
    with cores.held_to(before[:1]) as environment:
        assert environment["NPROC"] == str(len(before))
    with cores.held_to([]) as environment:
        assert environment == dict(os.environ) and cores.available() == before


def test_the_platform_is_found_out_elsewhere_and_one_that_cannot_start_is_none(monkeypatch):
    assert cores.platform() == "cpu"
    monkeypatch.setenv("JAX_PLATFORMS", "abacus")
    assert cores.platform() == ""
