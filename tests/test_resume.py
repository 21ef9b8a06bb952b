"""A run killed with SIGKILL in any phase and started again ends exactly where the uninterrupted run
does."""

import signal

import pytest
from resuming import files_of, launcher, log_of


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    return launcher(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def uninterrupted(launch, tmp_path_factory):
    return launch(tmp_path_factory.mktemp("whole"))


def test_stopped_and_killed_in_three_phases_ends_like_the_uninterrupted_run(
    launch, uninterrupted, tmp_path
):
    launch(tmp_path, kill="asked", expect=75)
    for phase in ("sampling", "scoring", "saving"):
        launch(tmp_path, kill=phase, expect=-signal.SIGKILL)
    launch(tmp_path)
    assert files_of(tmp_path) == files_of(uninterrupted)
    assert log_of(tmp_path) == log_of(uninterrupted)


def test_a_resume_that_loses_its_random_keys_is_told_apart(launch, uninterrupted, tmp_path):
    launch(tmp_path, kill="asked", expect=75)
    launch(tmp_path, kill="other keys")
    assert (
        files_of(tmp_path)["policy/model.safetensors"]
        != files_of(uninterrupted)["policy/model.safetensors"]
    )


def test_the_run_trained_something(uninterrupted):
    log = log_of(uninterrupted)
    train = [r["values"] for r in log if r["phase"] == "train"]
    assert len(train) == 4
    assert all(t["update_norm"] > 0 for t in train)
    assert {"generate", "judge", "score", "train", "iteration", "evaluate"} == {
        r["phase"] for r in log
    }
