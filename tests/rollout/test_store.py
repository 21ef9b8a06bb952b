"""A rollout on disk and in batches: nothing changes on the way, and padding never counts."""

import dataclasses

import numpy as np
import pytest

from ssppo_jax.errors import DataError
from ssppo_jax.rollout.store import Rollout, load_rollout, save_rollout, take_rows
from ssppo_jax.types import Batch

M, P, T = 5, 7, 3
IDENTITY = {"fingerprint": "abc", "iteration": 2, "config": "def"}


@pytest.fixture
def rollout():
    rng = np.random.default_rng(0)

    def floats(*shape):
        return rng.random(shape, np.float32)

    batch = Batch(
        prompt=rng.integers(1, 99, (M, P)).astype(np.int32),
        prompt_length=np.array([7, 2, 3, 1, 4], np.int32),
        completion=rng.integers(1, 99, (M, 2, T)).astype(np.int32),
        mask=np.ones((M, 2, T), np.float32),
        old_logp=floats(M, 2, T),
        ref_logp=floats(M, 2, T),
        init_logp=floats(M, 2, T),
        win_rate=floats(M, 2),
        target=floats(M, 2),
        p_win=floats(M),
        similarity=floats(M),
        advantage=floats(M, 2),
        weight=np.ones(M, np.float32),
    )
    return Rollout(
        batch, [{"iteration": 2, "prompt": "é"}], {"score": {"a": 0.1}}, {"score": {"seconds": 2.0}}
    )


@pytest.mark.parametrize("weighed", [False, True])
def test_a_rollout_read_back_is_the_one_written(rollout, tmp_path, weighed):
    if weighed:
        weighed_batch = rollout.batch._replace(importance_weight=rollout.batch.mask * 2)
        rollout = dataclasses.replace(rollout, batch=weighed_batch)
    path = tmp_path / "deep" / "r.npz"
    save_rollout(path, rollout, IDENTITY)
    again = load_rollout(path, IDENTITY)
    for name, value in rollout.batch._asdict().items():
        np.testing.assert_array_equal(getattr(again.batch, name), value)
        assert value is None or getattr(again.batch, name).dtype == value.dtype
    assert (again.records, again.metrics, again.wall) == (
        rollout.records,
        rollout.metrics,
        rollout.wall,
    )


def test_another_iterations_rollout_is_not_taken_for_this_one(rollout, tmp_path):
    save_rollout(tmp_path / "r.npz", rollout, IDENTITY)
    assert load_rollout(tmp_path / "r.npz", IDENTITY | {"iteration": 3}) is None
    assert load_rollout(tmp_path / "missing.npz", IDENTITY) is None


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:3000] + b"\0" + b[3001:]]
)
def test_a_damaged_rollout_is_named_and_never_used(rollout, tmp_path, damage):
    path = tmp_path / "r.npz"
    save_rollout(path, rollout, IDENTITY)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.raises(DataError, match=r"r\.npz: damaged rollout"):
        load_rollout(path, IDENTITY)


def test_missing_rows_are_filled_with_rows_that_do_not_count(rollout):
    part = take_rows(rollout.batch, np.array([3, 1]), 4, (4, 8))
    np.testing.assert_array_equal(part.weight, [1, 1, 0, 0])
    np.testing.assert_array_equal(part.mask.sum((1, 2)), [2 * T, 2 * T, 0, 0])
    np.testing.assert_array_equal(part.completion[:2], rollout.batch.completion[[3, 1]])


@pytest.mark.parametrize("rows,width", [([1, 2, 3, 4], 4), ([0, 1], 8)])
def test_prompts_are_cut_to_the_smallest_bucket_that_holds_the_longest(rollout, rows, width):
    part = take_rows(rollout.batch, np.array(rows), len(rows), (4, 8))
    assert part.prompt.shape == (len(rows), width)
    for got, row in zip(part.prompt, rows, strict=True):
        length = rollout.batch.prompt_length[row]
        np.testing.assert_array_equal(got[:length], rollout.batch.prompt[row, :length])
