"""Results side by side: refused where settings differ, and paired tests by another way."""

import itertools
import json

import numpy as np
import pytest
from matplotlib.axes import Axes

from ssppo_jax.__main__ import main
from ssppo_jax.benchmark import compare
from ssppo_jax.benchmark.paired import agreement, over_seeds, paired_test
from ssppo_jax.errors import ConfigError


def result(folder, name, values, *, temperature=0.0, judge="j", digest="a", seed=0):
    """Write a small result folder; `values` are the grades of its questions."""
    place = folder / name
    place.mkdir(parents=True)
    mean = float(np.mean(values))
    protocol = {
        "benchmark": "b",
        "version": "1",
        "sampling": {"temperature": temperature},
        "judge": {"kind": "endpoint", "model": judge},
    }
    record = {
        "protocol": protocol,
        "model": {"source": f"runs/{name}", "digest": digest},
        "seed": seed,
        "headline": "accuracy",
        "paired": "accuracy",
        "metrics": {"accuracy": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 5}},
        "questions": len(values),
        "failures": 0,
        "length": {"tokens_mean": 12.0},
    }
    (place / "result.json").write_text(json.dumps(record))
    rows = [
        {"id": str(i), "turns": ["q|"], "answers": [f"{name} {i}"], "grade": {"accuracy": v}}
        for i, v in enumerate(values)
    ]
    (place / "grades.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def compared(capsys, *folders, more=()):
    assert main(["compare", *(f"--workdir={folder}" for folder in folders), *more]) == 0
    return capsys.readouterr().out


def test_equal_settings_stand_in_one_table_best_first(tmp_path, capsys):
    a = result(tmp_path, "a", [0, 0, 0, 1, 1])
    b = result(tmp_path, "b", [1, 1, 0, 1, 1], digest="b")
    told = compared(capsys, a, b)
    assert told.index("| b | runs/b | 0.800") < told.index("| a | runs/a | 0.400")
    assert "| b - a | accuracy | 0.400" in told
    assert "**0** (+1) q|" in told and "- b: b 0" in told


def test_different_settings_are_refused_unless_told(tmp_path, capsys):
    a = result(tmp_path, "a", [0, 1, 1])
    b = result(tmp_path, "b", [1, 1, 1], temperature=0.7, digest="b")
    assert main(["compare", f"--workdir={a}", f"--workdir={b}"]) == ConfigError.exit_code
    told = capsys.readouterr().err
    assert 'sampling: {"temperature": 0.0} and {"temperature": 0.7}' in told and "--mixed" in told
    told = compared(capsys, a, b, more=["--mixed"])
    assert "Settings b differ from a: sampling" in told


def test_judges_of_the_same_answers_are_compared(tmp_path, capsys):
    a = result(tmp_path, "a", [1, 2, 3, 4])
    b = result(tmp_path, "b", [1, 2, 4, 3], judge="k")
    told = compared(capsys, a, b)
    assert "| a | b | 0.800 | 0.833 | 4 |" in told


def test_a_folder_of_results_gets_a_leaderboard(tmp_path, capsys):
    result(tmp_path, "a", [0, 1])
    result(tmp_path, "b", [1, 1], temperature=0.7, digest="b")
    compared(capsys, tmp_path)
    page = (tmp_path / "leaderboard.md").read_text()
    assert page.count("## b, judged by j") == 2 and "temperature 0.7" in page


def test_seeds_have_students_interval(tmp_path, capsys):
    several = [result(tmp_path, f"s{i}", [0, 1, i / 2], seed=i) for i in range(3)]
    told = compared(capsys, *several)
    means = [0.33333333, 0.5, 0.66666667]
    half = 4.302653 * np.std(means, ddof=1) / np.sqrt(3)  # t of two degrees of freedom
    found = over_seeds(means)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    assert "| runs/s0 | accuracy | 0.500" in told
    again = result(tmp_path, "again", [0, 1, 1], seed=2)  # a seed that is there counts once
    assert "| runs/s0 | accuracy | 0.500" in (told := compared(capsys, *several, again))
    assert "| 3 |" in told and "| 4 |" not in told


def test_results_without_the_headline_number_are_compared_all_the_same(tmp_path, capsys):
    several = [result(tmp_path, f"s{i}", [0, 1, i / 2], seed=i) for i in range(2)]
    for place in several:
        record = json.loads((place / "result.json").read_text()) | {"headline": "other"}
        (place / "result.json").write_text(json.dumps(record))
    assert "accuracy" in compared(capsys, *several)


def test_a_folder_without_results_is_named(tmp_path, capsys):
    assert main(["compare", f"--workdir={tmp_path}"]) == 65
    assert f"{tmp_path}: neither a run nor the result" in capsys.readouterr().err
    assert main(["compare"]) == 78


def test_the_p_value_is_that_of_all_flips_of_signs():
    """Every one of the 2^8 ways to swap the two results in a question, by hand."""
    rng = np.random.default_rng(1)
    a, b = rng.random(8), rng.random(8) + 0.15
    gaps = b - a
    flipped = [
        abs(np.mean(gaps * np.array(signs))) for signs in itertools.product((1, -1), repeat=8)
    ]
    want = np.mean([gap >= abs(gaps.mean()) - 1e-12 for gap in flipped])
    found = paired_test(*(dict(enumerate(x)) for x in (a, b)))
    assert found.p_value == pytest.approx(want, abs=0.01)
    assert found.difference.mean == pytest.approx(gaps.mean())
    assert paired_test({"a": 1.0}, {"b": 1.0}) is None


def test_agreement_leaves_ties_out():
    found = agreement({"a": 1, "b": 2, "c": 2}, {"a": 5, "b": 6, "c": 9})
    assert found["same_order"] == 1.0 and found["questions"] == 3


# ---- runs ----------------------------------------------------------------------------------------


def run_folder(folder, name, rate, *, seed=0, loss="sppo", oracle="sentiment"):
    """Write the files of a finished run that are compared."""
    place = folder / name
    place.mkdir()
    config = {"seed": seed, "loss.name": loss, "oracle.name": oracle, "model.source": "m"}
    (place / "config.json").write_text(json.dumps({"config": config}))
    ends = {"win_rate_low": rate - 0.05, "win_rate_high": rate + 0.05}
    rows = [
        {
            "phase": "evaluate",
            "iteration": i,
            "values": {"win_rate": 0.5 + i * (rate - 0.5), **ends},
        }
        for i in range(2)
    ]
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [
        {"stage": "final", "prompt": "p|1", "sample": 0, "response": f"same {name}"},
        {"stage": "final", "prompt": "p2", "sample": 0, "response": "same"},
        {"stage": "start", "prompt": "p2", "sample": 0, "response": "old"},
    ]
    (place / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    result = {"win_rate": rate, "low": rate - 0.05, "high": rate + 0.05, "prompts": 8}
    (place / "result.json").write_text(json.dumps(result))
    return place


def test_runs_have_a_table_curves_and_what_they_answer_differently(tmp_path, capsys):
    a = run_folder(tmp_path, "a", 0.7)
    b = run_folder(tmp_path, "b", 0.6, loss="dpo")
    told = compared(capsys, a, b, more=[f"--output={tmp_path / 'page'}"])
    assert "| a | sppo | sentiment | 0 | 0.700 [0.650, 0.750] | 5 |" in told
    assert "**p|1**" in told and told.index("**p|1**") < told.index("**p2**")
    assert (tmp_path / "page" / "curves.png").read_bytes()[1:4] == b"PNG"
    assert "curves.png" in (tmp_path / "page" / "compare.md").read_text()


def test_runs_of_one_name_have_a_curve_each_and_a_bound_of_zero_is_one(tmp_path):
    runs = []
    for parent in "xy":
        (tmp_path / parent).mkdir()
        place = run_folder(tmp_path / parent, "run0", 0.4)
        log = place / "metrics.jsonl"
        log.write_text(log.read_text().replace('"win_rate_low": 0.35', '"win_rate_low": 0.0'))
        config = json.loads((place / "config.json").read_text())["config"]
        runs.append(compare.Run(place, config, {}))
    assert compare._curve(runs[0])[1] == pytest.approx((1.0, 0.4, 0.0, 0.45))
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "plot", lambda self, x, y, **style: drawn.append(style["label"]))
        patch.setattr(Axes, "legend", lambda self: None)
        compare.draw_curves(runs, tmp_path / "curves.png")
    assert drawn == ["run0", "run0"]


def test_runs_with_other_oracles_are_refused_and_seeds_are_pooled(tmp_path, capsys):
    a = run_folder(tmp_path, "a", 0.7)
    b = run_folder(tmp_path, "b", 0.6, oracle="length")
    assert main(["compare", f"--workdir={a}", f"--workdir={b}"]) == 78
    assert 'oracle.name: "sentiment" and "length"' in capsys.readouterr().err
    c = run_folder(tmp_path, "c", 0.8, seed=1)
    assert "| a, c | 0.750 [" in compared(capsys, a, c)
