import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssppo_jax.errors import DataError, UserError
from ssppo_jax.runs import metrics
from ssppo_jax.runs.metrics import (
    Lagged,
    MetricLog,
    finalize,
    length_percentiles,
    read_metrics,
    sample_stats,
)
from ssppo_jax.types import FINISH_EOS, FINISH_LENGTH, Max, Mean, Min, Samples


def write_steps(folder, steps, cut=None):
    """A run's log over `steps`; returns the offset after each."""
    offsets = {}
    with MetricLog(folder) as log:
        if cut is not None:
            log.truncate(cut)
        for step in steps:
            log.write(
                step=step,
                iteration=0,
                phase="train",
                values={"loss": step / 3},
                wall={"tokens_per_second": 9.0},
            )
            offsets[step] = log.offset()
    return offsets


def without_wall(folder):
    return [
        {k: v for k, v in r.items() if k != "wall"} for r in read_metrics(folder / "metrics.jsonl")
    ]


def test_a_line_holds_everything_and_floats_survive_exactly(tmp_path):
    with MetricLog(tmp_path) as log:
        log.write(
            step=np.int64(7),
            iteration=2,
            phase="train",
            values={"loss": np.float32(0.1)},
            wall={"rate": 3.5},
        )
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record.pop("wall").keys() == {"time", "rate"}
    assert record == {
        "step": 7,
        "iteration": 2,
        "phase": "train",
        "values": {"loss": float(np.float32(0.1))},
    }


def test_non_finite_values_become_null_and_are_named(tmp_path):
    with MetricLog(tmp_path) as log:
        log.write(
            step=1,
            iteration=0,
            phase="train",
            values={"a": np.nan, "b": 1.0, "c": -np.inf},
            wall={"r": np.inf},
        )
    text = (tmp_path / "metrics.jsonl").read_text()
    record = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert record["values"] == {"a": None, "b": 1.0, "c": None}
    assert record["nonfinite"] == ["a", "c"]
    assert record["wall"]["r"] is None


def test_a_resumed_log_equals_the_uninterrupted_one_but_for_wall_times(tmp_path):
    write_steps(tmp_path / "whole", range(6))
    offsets = write_steps(tmp_path / "resumed", range(4))  # the checkpoint was taken at step 1
    with open(tmp_path / "resumed" / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 4, "torn')
    write_steps(tmp_path / "resumed", range(2, 6), cut=offsets[1])
    assert without_wall(tmp_path / "resumed") == without_wall(tmp_path / "whole")


def test_reopening_appends(tmp_path):
    write_steps(tmp_path, [1])
    offsets = write_steps(tmp_path, [2])
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert offsets[2] == (tmp_path / "metrics.jsonl").stat().st_size


def test_truncating_to_zero_starts_over(tmp_path):
    write_steps(tmp_path, [1, 2])
    write_steps(tmp_path, [5], cut=0)
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [5]


@pytest.mark.parametrize("wrong", [1, 100, -1])
def test_a_log_of_another_run_is_not_cut(tmp_path, wrong):
    offsets = write_steps(tmp_path, [1, 2])
    with (
        MetricLog(tmp_path) as log,
        pytest.raises(UserError, match="does not belong"),
    ):
        log.truncate(offsets[2] + wrong)
    assert len(without_wall(tmp_path)) == 2


def test_a_torn_last_line_is_left_out_but_another_bad_line_is_an_error(tmp_path, caplog):
    write_steps(tmp_path, [1])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 2, "to')
    assert [r["step"] for r in read_metrics(path)] == [1]
    assert "metrics.jsonl:2" in caplog.text
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:2"):
        list(read_metrics(path))


def tree(scale=1.0):
    mean = Mean(jnp.float32(3.0 * scale), jnp.float32(7.0))
    return {
        "mean": mean,
        "empty": Mean(jnp.float32(0), jnp.float32(0)),
        "max": Max(jnp.float32(scale)),
        "min": Min(-1.5),
    }


def test_finalized_metrics_equal_their_own_results():
    found = finalize(tree())
    assert found == pytest.approx(
        {name: float(metric.result()) for name, metric in tree().items()}, rel=1e-7
    )
    assert all(type(value) is float for value in found.values())


def test_a_metric_that_is_not_mergeable_is_refused_by_name():
    with pytest.raises(TypeError, match="metric loss is"):
        finalize({"loss": jnp.float32(1)})


def test_finalizing_transfers_once_and_asks_nothing_of_the_device(monkeypatch):
    get, calls = jax.device_get, []
    monkeypatch.setattr(jax, "device_get", lambda tree: calls.append(tree) or get(tree))
    device = tree()
    with jax.transfer_guard("disallow"):
        assert finalize(device)["min"] == -1.5
    assert len(calls) == 1


def test_a_steps_metrics_are_fetched_only_after_the_next_was_handed_over(monkeypatch):
    fetched = []
    monkeypatch.setattr(metrics, "finalize", lambda tree: fetched.append(tree) or {"value": tree})
    lagged = Lagged()
    assert lagged.flush() is None
    assert lagged.push(1, "first") is None and fetched == []
    assert lagged.push(2, "second") == (1, {"value": "first"})
    assert lagged.flush() == (2, {"value": "second"})
    assert lagged.flush() is None and fetched == ["first", "second"]


def samples(rows, finish=None, pad=0, extra=0):
    """[B][K] lists of tokens -> Samples, padded with `pad`."""
    width = max(len(r) for group in rows for r in group) + extra
    tokens = np.array([[r + [pad] * (width - len(r)) for r in group] for group in rows], np.int32)
    length = np.array([[len(r) for r in group] for group in rows], np.int32)
    finish = (
        np.full(length.shape, FINISH_EOS, np.int8) if finish is None else np.array(finish, np.int8)
    )
    zeros = np.zeros(tokens.shape, np.float32)
    return Samples(tokens, length, zeros, zeros, finish)


def ngrams(row, n):
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


def by_hand(rows):
    """distinct_1, distinct_2, repetition_4 with Python sets."""
    found = []
    for n in (1, 2):
        pooled = [[g for row in group for g in ngrams(row, n)] for group in rows]
        found.append(np.mean([len(set(p)) / len(p) for p in pooled if p]))
    grams = [ngrams(row, 4) for group in rows for row in group]
    return [*found, np.mean([1 - len(set(g)) / len(g) for g in grams if g])]


def test_repetition_and_distinct_equal_a_count_with_sets():
    rng = np.random.default_rng(0)
    rows = [[rng.integers(0, 3, rng.integers(1, 30)).tolist() for _ in range(4)] for _ in range(5)]
    stats = sample_stats(samples(rows))
    np.testing.assert_allclose(
        [stats[k] for k in ("distinct_1", "distinct_2", "repetition_4")], by_hand(rows), rtol=1e-12
    )


def test_repetition_of_a_loop_by_pencil():
    loop, fresh = [5, 6] * 4, [1, 2, 3, 4, 5, 6, 7, 8]  # the loop has 5 4-grams, 2 of them distinct
    stats = sample_stats(samples([[loop, fresh]]))
    assert stats["repetition_4"] == pytest.approx((3 / 5 + 0) / 2)
    assert stats["distinct_1"] == pytest.approx(8 / 16)


def test_padding_never_counts():
    rows = [[[1, 2, 3, 4, 1, 2, 3, 4], [9]], [[7, 7, 7, 7, 7], [1, 2]]]
    assert sample_stats(samples(rows)) == sample_stats(samples(rows, pad=7, extra=9))


def test_statistics_do_not_depend_on_the_order_of_prompts():
    rows = [[[1, 2, 3, 4, 1, 2], [9, 9, 3]], [[7, 7, 7, 7, 7], [1, 2, 8]]]
    assert sample_stats(samples(rows)) == pytest.approx(sample_stats(samples(rows[::-1])))


@pytest.mark.parametrize("rows", [[[[3], [4]]], [[[], []]], [[[1, 2, 3], [3, 2]]]])
def test_completions_too_short_for_an_ngram_give_zero_not_nan(rows):
    stats = sample_stats(samples(rows, extra=1))
    assert stats["repetition_4"] == 0.0
    assert all(np.isfinite(v) for v in stats.values())


def test_eos_rate_counts_sampled_ends():
    finish = [[FINISH_EOS, FINISH_LENGTH, FINISH_LENGTH, FINISH_LENGTH]]
    assert sample_stats(samples([[[1], [2], [3], [4]]], finish))["eos_rate"] == 0.25


def test_length_percentiles_by_pencil():
    found = length_percentiles(np.arange(11).reshape(1, 11) * 10)
    assert found == {
        "length_p10": 10,
        "length_p50": 50,
        "length_p90": 90,
        "length_mean": 50,
        "length_max": 100,
    }
