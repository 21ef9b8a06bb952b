"""A killed run that learns from groups ends exactly where the uninterrupted run does."""

import signal

from resuming import files_of, launcher, log_of

KIND = [
    f"--config.{setting}"
    for setting in (
        "loss.name=sspo",
        "sampling.num_samples=3",
        "train.prompts_per_iteration=8",
        "train.batch_size=4",
    )
]


def test_groups_continue_as_pairs_do(tmp_path):
    launch = launcher(tmp_path)
    whole = launch(tmp_path / "whole", kind=KIND)
    launch(tmp_path / "killed", kill="asked", expect=75, kind=KIND)
    launch(tmp_path / "killed", kill="saving", expect=-signal.SIGKILL, kind=KIND)
    killed = launch(tmp_path / "killed", kind=KIND)
    assert files_of(killed, "groups") == files_of(whole, "groups")
    assert log_of(killed) == log_of(whole)
    assert any(r["phase"] == "train" and r["values"]["update_norm"] > 0 for r in log_of(whole))
