import math

import pytest
from swept import log

from ssppo_jax.errors import DataError
from ssppo_jax.sweep.measure import HOW, Measure, measure_run, parse, read_courses


@pytest.mark.parametrize(
    ("text", "measure"),
    [
        ("evaluate/accuracy", Measure("evaluate", "accuracy", "last")),
        ("train/ratio/max:max", Measure("train", "ratio/max", "max")),
        ("judge/pairs/similarity:gain", Measure("judge", "pairs/similarity", "gain")),
    ],
)
def test_a_measure_is_a_phase_a_name_and_how(text, measure):
    assert (
        parse(text) == measure and str(measure) == text and measure.source == text.partition(":")[0]
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("accuracy", "one of the phases generate, judge, score, train, iteration, evaluate"),
        ("eval/accuracy", "one of the phases"),
        ("train/", "phase/name"),
        ("train/loss:median", "after the colon stands one of last, first, mean, min, max, gain"),
        ("train/loss:", "after the colon"),
        (3, "must be text"),
    ],
)
def test_what_is_no_measure_is_told_what_one_is(text, words):
    with pytest.raises(ValueError, match=words):
        parse(text)


def test_every_how_makes_its_own_number_of_a_course(tmp_path):
    log(tmp_path, "train", loss=[3.0, 1.0, 5.0, 4.0])
    values = measure_run(tmp_path, [Measure("train", "loss", how) for how in HOW]).values
    wanted = {"": 4.0, ":first": 3.0, ":mean": 3.25, ":min": 1.0, ":max": 5.0, ":gain": 1.0}
    assert values == {f"train/loss{how}": value for how, value in wanted.items()}


def test_a_course_runs_over_steps_in_training_and_over_iterations_elsewhere(tmp_path):
    log(tmp_path, "train", reward=[1.0, 2.0])
    log(tmp_path, "judge", reward=[3.0, 4.0])
    courses = read_courses(tmp_path / "metrics.jsonl")
    assert courses["train/reward"].to_dict() == {0: 1, 10: 2}
    assert courses["judge/reward"].to_dict() == {0: 3, 1: 4}
    assert courses["judge/rate"].to_dict() == {0: 5, 1: 5}  # a wall value
    assert "score/reward" not in courses


def test_a_value_that_was_not_finite_is_never_averaged_away(tmp_path):
    log(tmp_path, "train", loss=[1.0, None, 3.0])
    measured = measure_run(tmp_path, [Measure("train", "loss", "mean"), Measure("train", "loss")])
    assert measured.values == {"train/loss:mean": None, "train/loss": 3.0}
    assert measured.missing == {"train/loss:mean": "not finite"}
    course = read_courses(tmp_path / "metrics.jsonl")["train/loss"]
    assert course.index.tolist() == [0, 10, 20] and math.isnan(course[10])


def test_what_a_run_did_not_log_is_none_with_the_reason_and_the_nearest_name(tmp_path):
    log(tmp_path, "evaluate", accuracy=[0.5])
    wanted = [
        Measure("evaluate", "acuracy"),
        Measure("evaluate", "accuracy", "gain"),
        Measure("train", "accuracy"),
    ]
    wanted.append(Measure("train", "acuracy"))
    measured = measure_run(tmp_path, wanted)
    assert set(measured.values.values()) == {None}
    assert measured.missing["train/acuracy"] == "not logged"
    assert measured.missing["train/accuracy"] == "not logged; did you mean 'evaluate/accuracy'?"
    assert measured.missing["evaluate/acuracy"] == "not logged; did you mean 'evaluate/accuracy'?"
    assert measured.missing["evaluate/accuracy:gain"] == "logged only once, so it has no gain"


def test_a_log_that_is_missing_or_damaged_is_a_reason_not_an_error(tmp_path):
    measure = Measure("train", "loss")
    assert measure_run(tmp_path, [measure]).missing == {"train/loss": "metrics.jsonl is missing"}
    log(tmp_path, "train", loss=[1.0])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write("oops\n{}\n")
    assert (
        "metrics.jsonl:2: not a JSON record"
        in measure_run(tmp_path, [measure]).missing["train/loss"]
    )
    with pytest.raises(DataError):
        read_courses(tmp_path / "metrics.jsonl")


def test_a_torn_last_line_is_left_out(tmp_path):
    log(tmp_path, "train", loss=[1.0, 2.0])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"phase": "tra')
    assert read_courses(tmp_path / "metrics.jsonl")["train/loss"].tolist() == [1, 2]
