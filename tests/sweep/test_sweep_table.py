"""Tables and pictures of fabricated sweeps."""

import json

import numpy as np
import pandas as pd
import pytest
from swept import log

from ssppo_jax.sweep import grid, measure
from ssppo_jax.sweep import plots as sweep_plots
from ssppo_jax.sweep import table as sweep_table

WIN_RATE = ("evaluate/win_rate",)


@pytest.fixture
def finished(tmp_path):
    """A finished run with its log: a grid point, a seed, and series by phase."""

    def make(point, seed, label="", metrics=WIN_RATE, **phases):
        run = grid.Run(
            point, label, seed, tmp_path / f"{label or grid.key_text(point)},seed={seed}", []
        )
        for phase, series in phases.items():
            log(run.folder, phase, **series)
        (run.folder / "result.json").write_text(json.dumps({"prompts": 8}))
        grid.read_result(run, measures(metrics))
        return run

    return make


def measures(metrics):
    return tuple(map(measure.parse, metrics))


def ended(point, seed, status, label=""):
    folder = grid.Path(f"{label or grid.key_text(point)},seed={seed}")
    return grid.Run(point, label, seed, folder, [], status, reason="why | so")


def beta(value):
    return {"loss.beta": value}


def test_the_summary_counts_what_is_missing_and_plots_are_drawn_even_of_failures(
    tmp_path, finished
):
    runs = [
        finished(beta(1), 0, evaluate={"win_rate": [0.5, 0.6]}),
        ended(beta(1), 1, "failed"),
        ended(beta(2), 0, "failed"),
        ended(beta(3), 0, "pending"),
        ended(beta(3), 1, "stopped"),
    ]
    found = grid.Grid(runs, measures(WIN_RATE))
    rows = []
    for row in sweep_table.summary(found):
        counts = (row["n"], row["failed"], row["unfinished"])
        rows.append((*row["metrics"]["evaluate/win_rate"].values(), *counts))
    assert rows == [(0.6, None, 1, 1, 1, 0), (None, None, 0, 0, 1, 0), (None, None, 0, 0, 0, 2)]
    lines = sweep_table.table(found).splitlines()
    assert lines[2:5] == [
        "| 1 | 0.600 (one seed) | 1 | 1 |  |",
        "| 2 | failed | 0 | 1 |  |",
        "| 3 | not run | 0 |  | 2 |",
    ]
    assert lines[5:] == [
        "",
        "Failed runs:",
        "- loss.beta=1,seed=1: why | so",
        "- loss.beta=2,seed=0: why | so",
    ]
    for plot in (sweep_plots.plot_points, sweep_plots.plot_courses):
        plot(found, tmp_path / "p.png")
        assert (tmp_path / "p.png").stat().st_size > 5000
        (tmp_path / "p.png").unlink()


def test_every_metric_is_a_column_and_one_that_was_not_logged_is_named_under_the_table(finished):
    metrics = ("evaluate/accuracy:gain", "train/lr", "train/effective_update_ratio:mean")
    runs = [
        finished(
            beta(1),
            s,
            metrics=metrics,
            evaluate={"accuracy": [0.1, 0.3 + s / 10]},
            train={"lr": [2e-5]},
        )
        for s in (0, 1)
    ]
    runs.append(
        finished(
            beta(2),
            0,
            metrics=metrics,
            evaluate={"accuracy": [0.1, None]},
            train={"effective_update_ratio": [0.5, 1.0]},
        )
    )
    runs.append(
        finished(
            beta(2),
            1,
            metrics=metrics,
            evaluate={"accuracy": [0.1, 1234.1]},
            train={"effective_update_ratio": [1, 2]},
        )
    )
    assert sweep_table.table(grid.Grid(runs, measures(metrics))).splitlines() == [
        (
            "| loss.beta | evaluate/accuracy:gain | train/lr |"
            " train/effective_update_ratio:mean | n | failed | unfinished |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 1 | 0.250 ± 0.050 | 2e-05 ± 0 | - | 2 |  |  |",
        "| 2 | 1.23e+03 (1 of 2) | - | 1.125 ± 0.375 | 2 |  |  |",
        "",
        "Values missing:",
        "- evaluate/accuracy:gain: not finite (1 of 4 finished runs: loss.beta=2,seed=0)",
        "- train/lr: not logged (2 of 4 finished runs: loss.beta=2,seed=0; loss.beta=2,seed=1)",
        (
            "- train/effective_update_ratio:mean: not logged (2 of 4 finished runs:"
            " loss.beta=1,seed=0; loss.beta=1,seed=1)"
        ),
    ]


def test_labels_stand_in_the_table_and_are_explained_under_it(finished):
    rate = {"win_rate": [0.5]}
    runs = [finished(beta(1), s, "both", evaluate=rate) for s in (0, 1)] + [
        finished(beta(2), 0, evaluate=rate)
    ]
    assert sweep_table.table(grid.Grid(runs, measures(WIN_RATE))).splitlines() == [
        "| point | evaluate/win_rate | n | failed | unfinished |",
        "| --- | --- | --- | --- | --- |",
        "| both | 0.500 ± 0.000 | 2 |  |  |",
        "| loss.beta=2 | 0.500 (one seed) | 1 |  |  |",
        "",
        "Labels:",
        "- both: loss.beta=1",
    ]


def test_the_record_keeps_every_runs_values(tmp_path, finished):
    runs = [finished(beta(1), s, evaluate={"win_rate": [0.5 + s / 10]}) for s in (0, 1)]
    sweep_table.write(grid.Grid(runs, measures(WIN_RATE)), tmp_path)
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert [run["values"] for run in record["runs"]] == [
        {"evaluate/win_rate": 0.5},
        {"evaluate/win_rate": 0.6},
    ]
    assert (
        record["runs"][0]["result"] == {"prompts": 8}
        and record["table"][0]["metrics"]["evaluate/win_rate"]["n"] == 2
    )


def test_a_curve_is_the_mean_over_seeds_at_the_steps_they_share():
    first = pd.Series([0.0, 1.0, 2.0, 3.0], index=[0, 1, 2, 3])
    seeds = [first, pd.Series([9.0, 6.0, 3.0], index=[3, 2, 1])]
    course = sweep_plots.mean_course(seeds)
    assert course["mean"].to_dict() == {1: 2, 2: 4, 3: 6}
    np.testing.assert_allclose(course.error, [1, 2, 3])  # a, 3a: deviation a sqrt(2), over sqrt(2)
    assert not sweep_plots.mean_course(seeds[:1]).error.any()
    assert sweep_plots.mean_course([]).empty


def test_of_two_values_at_one_step_a_curve_takes_the_first():
    course = sweep_plots.mean_course([pd.Series([1.0, 2.0, 5.0], index=[0, 1, 1])])
    assert course["mean"].to_dict() == {0: 1, 1: 2}


def test_a_long_curve_is_drawn_as_means_of_slices_and_a_lost_value_leaves_a_gap():
    x = np.arange(600.0)
    y = np.where(x == 25, np.nan, x)
    mean = sweep_plots.mean_course([pd.Series(y, index=x)])["mean"]
    assert mean.index[0] == mean.iloc[0] == 4.5 and len(mean) == 60  # the mean of 0 ... 9
    assert np.flatnonzero(mean.isna()).tolist() == [2]
