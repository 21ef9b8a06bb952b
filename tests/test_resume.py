"""A run killed with SIGKILL in any phase and started again ends exactly where the uninterrupted run
does."""

import shutil
import signal

import pytest
from resuming import files_of, launcher, log_of


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    with launcher(tmp_path_factory.mktemp("shared")) as run:
        yield run


@pytest.fixture(scope="module")
def uninterrupted(launch, tmp_path_factory):
    return launch(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def asked(launch, tmp_path_factory):
    return launch(tmp_path_factory.mktemp("asked"), kill="asked", expect=75)


@pytest.fixture
def stopped(asked, tmp_path):
    """Return a run of its own that was asked to stop in the first iteration."""
    return shutil.copytree(asked, tmp_path / "run")


def test_stopped_and_killed_in_four_phases_ends_like_the_uninterrupted_run(
    launch, uninterrupted, stopped
):
    for phase in ("sampling", "scoring", "behind", "saving"):
        launch(stopped, kill=phase, expect=-signal.SIGKILL)
    launch(stopped)
    assert files_of(stopped) == files_of(uninterrupted)
    assert log_of(stopped) == log_of(uninterrupted)


def test_the_run_trained_something(uninterrupted):
    log = log_of(uninterrupted)
    train = [r["values"] for r in log if r["phase"] == "train"]
    assert len(train) == 4
    assert all(t["update_norm"] > 0 for t in train)
    assert {"generate", "judge", "score", "train", "iteration", "evaluate"} == {
        r["phase"] for r in log
    }
