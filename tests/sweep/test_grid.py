"""What a swept file may say, and which runs come of it."""

import json
import sys
from functools import partial

import pytest
from swept import BASE, log, write_swept

import ssppo_jax.training.train
from ssppo_jax import schema
from ssppo_jax.__main__ import main
from ssppo_jax.errors import ConfigError, Interrupted
from ssppo_jax.runs import folder as run_folder
from ssppo_jax.sweep import grid
from ssppo_jax.sweep.measure import Measure


@pytest.fixture
def swept(tmp_path):
    return partial(write_swept, tmp_path)


def test_every_point_that_cannot_run_is_told_before_any_runs(tmp_path, swept):
    spec = swept(
        "add({'loss.beta': 0.1})\nadd({'loss.bta': 0.1})\nadd({'loss.beta':"
        " -1.0})\nadd({'loss.beta': 'big'})\nadd({'loss.beta': '0.2'})\nadd({'train.epochs':"
        " 1.5})\nadd({'loss.pair_reduction': 'men'})",
        "SEEDS = (0, 1)",
    )
    with pytest.raises(ConfigError) as error:
        grid.plan(spec, tmp_path / "out", {})
    message = str(error.value)
    assert message.startswith("6 problem(s)")  # once each, not once per seed
    assert "no such key; did you mean 'loss.beta'?" in message
    assert "beta=-1.0: must be > 0" in message
    assert "--config.loss.beta=big: expected a number" in message
    assert "loss.beta takes float, as in 0.2, not '0.2'" in message
    assert "--config.train.epochs=1.5: expected a whole number" in message
    assert "pair_reduction='men'" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("body", "more", "overrides", "words"),
    [
        ("pass", "", {}, r"sweep\(add\) added nothing; call add\(\)"),
        (
            "add({'loss.beta': 0.1})\nadd(**{'loss.beta': 0.1})",
            "",
            {},
            "added twice: loss.beta=0.1",
        ),
        ("add(seed=1)", "", {}, r"write SEEDS = \(0, 1, 2\)"),
        ("add()", "SEEDS = (0, 0)", {}, r"SEEDS=\(0, 0\): must be distinct"),
        ("add()", "SEEDS = (-1,)", {}, "must be distinct whole numbers from 0"),
        ("add()", "SEEDS = ()", {}, "must be distinct"),
        ("add()", "SEEDS = (0, 1)", {"seed": "3"}, r"--config\.seed: .* sweeps it; leave it out"),
        (
            "add({'loss.beta': 0.1})",
            "",
            {"loss.beta": "0.2"},
            r"--config\.loss\.beta: .* sweeps it",
        ),
        ("add({'loss.beta': 0.1})", "", {"loss.bta": "0.2"}, "^1 problem.*\n.*no such key"),
        ("x = {}['a']", "", {}, r"grid\.py:\d+: KeyError: 'a'"),
        ("add({1: 2})", "", {}, "the keys of a point are texts, such as 'loss.beta'"),
        ("add(label=3)", "", {}, 'label=3: must be a line of text, such as label="no gate"'),
        ("add(label='a\\nb')", "", {}, "must be a line of text"),
        (
            "add(label='a')\nadd({'loss.beta': 0.1}, label='a')",
            "",
            {},
            "label='a' names two points",
        ),
        (
            "add({'loss.beta': 0.3}, label='loss.beta=0.2')\nadd({'loss.beta': 0.2})",
            "",
            {},
            "^1 problem.*\n.*'loss.beta=0.2' names two points",
        ),
        ("add(label='a')\nadd(label='b')", "", {}, "added twice: as-configured"),
        (
            "add()",
            "METRICS = 'evaluate/win_rate'",
            {},
            r'must be a list, such as METRICS = \("evaluate/win_rate",\)',
        ),
        ("add()", "METRICS = ()", {}, "must be a list"),
        ("add()", "METRICS = ('eval/a',)", {}, "evaluations are evaluate/a"),
        (
            "add()",
            "METRICS = ('evaluate/a', 'evaluate/a:last')",
            {},
            "'evaluate/a:last' stands there twice",
        ),
        (
            "add()",
            "METRICS = ('eval/a', 'train/b:average')",
            {},
            r"(?s)^2 problem.*'eval/a'.*'train/b:average'.*gain",
        ),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(tmp_path, swept, body, more, overrides, words):
    with pytest.raises(ConfigError, match=words):
        grid.plan(swept(body, more), tmp_path / "out", overrides)


def test_a_config_without_a_grid_is_refused(tmp_path):
    (tmp_path / "c.py").write_text(BASE)
    with pytest.raises(ConfigError, match=r"defines no sweep\(add\)"):
        grid.plan(str(tmp_path / "c.py"), tmp_path / "out", {})


def test_a_folder_of_another_configuration_is_not_taken_for_this_sweeps(tmp_path, swept):
    spec, out = swept("add({'loss.beta': 0.1})"), tmp_path / "out"
    folder = out / "loss.beta=0.1,seed=0"
    run_folder.claim(folder, schema.load(spec, {"loss.beta": "0.1"}), "1")
    log(folder, "evaluate", win_rate=[0.7])
    (folder / "result.json").write_text('{"win_rate": 0.7}')
    (run,) = grid.plan(spec, out, {}).runs
    assert (
        run.status == "done"
        and run.values == {"evaluate/win_rate": 0.7}
        and run.result == {"win_rate": 0.7}
    )
    with pytest.raises(
        ConfigError, match=r"train\.epochs: the run has 1, given 2; give a new --workdir"
    ):
        grid.plan(spec, out, {"train.epochs": "2"})
    (run,) = grid.plan(spec, out, {"train.iterations": "50"}).runs  # it can be made longer
    assert run.status == "pending" and not run.values


def test_what_a_sweep_runs_is_what_train_understands(tmp_path, swept, monkeypatch):
    """Typed values, a re-selected component, a NumPy number and a list survive the way over the
    command line."""
    spec = swept(
        "import numpy as np\n"
        "add({'loss.name': 'dpo', 'loss.beta': np.float64(0.1), 'pairs.include_self': False})\n"
        "add({'data.prompt_buckets': np.array([128, 512]), 'train.epochs': np.int64(2)})\n"
        "add()",
        "SEEDS = (5,)",
    )
    given = []

    def train(config, workdir, **how):
        given.append((config, workdir))
        raise Interrupted

    monkeypatch.setattr(ssppo_jax.training.train, "train", train)
    runs = grid.plan(spec, tmp_path / "out", {"eval.num_samples": "1"}).runs
    for run in runs:
        assert run.command[:4] == [sys.executable, "-m", "ssppo_jax", "train"]
        assert main(run.command[3:]) == 75
    (dpo, folder), (buckets, _), (plain, _) = given
    assert (dpo.loss.name, dpo.loss.beta, dpo.loss.label_smoothing) == ("dpo", 0.1, 0.0)
    assert "log_z_coef" not in dpo.loss and not dpo.pairs.include_self  # s_sppo's keyword is gone
    assert folder == tmp_path / "out/loss.name=dpo,loss.beta=0.1,pairs.include_self=False,seed=5"
    assert buckets.data.prompt_buckets == (128, 512) and buckets.train.epochs == 2
    assert plain.loss.beta == 0.05 and {c.seed for c, _ in given} == {5}
    assert {c.eval.num_samples for c, _ in given} == {1}


def test_without_seeds_a_point_has_the_configs_own(tmp_path, swept):
    spec = swept("add()")
    assert [run.seed for run in grid.plan(spec, tmp_path, {}).runs] == [0]
    (run,) = grid.plan(spec, tmp_path, {"seed": "4"}).runs
    assert run.seed == 4 and run.folder.name == "as-configured,seed=4"


def test_odd_values_make_distinct_safe_folder_names(tmp_path, swept):
    spec = swept(
        "for name in ('a/b', 'a_b', 'a b', '../x', 'y' * 300):\n    add({'model.source': name})"
    )
    names = [run.folder.name for run in grid.plan(spec, tmp_path, {}).runs]
    assert len(set(names)) == 5 and all(
        len(name) < 200 and not set(name) & set("/ ") for name in names
    )
    assert names[1] == "model.source=a_b,seed=0"


def test_a_label_stands_for_the_points_keys(tmp_path, swept):
    body = (
        "add({'loss.beta': 0.1, 'train.epochs': 2}, label='no gate')\nadd(label='base',"
        " **{'loss.beta': 0.3})\nadd()"
    )
    runs = grid.plan(swept(body), tmp_path, {}).runs
    assert [run.name for run in runs] == ["no gate", "base", "as-configured"]
    assert [run.folder.name for run in runs][1:] == ["base,seed=0", "as-configured,seed=0"]
    assert runs[0].folder.name.startswith("no_gate,seed=0-")  # a hash: "no_gate" is another label
    assert (
        runs[0].point == {"loss.beta": 0.1, "train.epochs": 2}
        and "--config.loss.beta=0.3" in runs[1].command
    )


def test_a_point_that_cannot_run_is_told_by_its_label(tmp_path, swept):
    with pytest.raises(ConfigError, match=r"(?s)both: .*no such key; did you mean 'loss\.beta'"):
        grid.plan(swept("add({'loss.bta': 0.1}, label='both')"), tmp_path, {})


def test_the_file_says_what_is_measured(tmp_path, swept):
    assert grid.plan(swept("add()"), tmp_path, {}).measures == (Measure("evaluate", "win_rate"),)
    measures = grid.plan(
        swept("add()", "METRICS = ('evaluate/accuracy', 'train/effective_update_ratio:mean')"),
        tmp_path,
        {},
    ).measures
    assert measures == (
        Measure("evaluate", "accuracy"),
        Measure("train", "effective_update_ratio", "mean"),
    )


def test_seconds_of_earlier_calls_are_kept_while_the_runs_folder_is(tmp_path, swept):
    spec, folder = swept("add()"), tmp_path / "out/as-configured,seed=0"
    folder.mkdir(parents=True)
    record = {"runs": [{"folder": f"elsewhere/{folder.name}", "seconds": 12.5}]}
    (tmp_path / "out/sweep.json").write_text(json.dumps(record))
    assert grid.plan(spec, tmp_path / "out", {}).runs[0].seconds == 12.5
    (tmp_path / "out/sweep.json").write_text('{"runs": [{"folder": 3}')
    assert grid.plan(spec, tmp_path / "out", {}).runs[0].seconds == 0.0
    (tmp_path / "out/sweep.json").write_text(json.dumps(record))
    folder.rmdir()
    assert grid.plan(spec, tmp_path / "out", {}).runs[0].seconds == 0.0
