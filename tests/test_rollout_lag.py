"""`train.rollout_lag=1`: a rollout is learned from an iteration after it was sampled."""

import json
import shutil
import signal

from resuming import files_of, launcher, log_of

SETTINGS = {
    "loss.name": "grpo",
    "oracle.name": "length",
    "optimizer.learning_rate": 0.03,
    "train.iterations": 3,
}
STILL = {"optimizer.learning_rate": 1e-30}  # the policy stays the initial one


def test_each_rollout_is_that_of_the_policy_before_and_a_killed_run_ends_alike(tmp_path):
    """The second rollout is the initial policy's, and the third is not. The ratios of the second
    are those of a policy that moved, from its first update on."""
    lagged = SETTINGS | {"train.rollout_lag": 1}
    with launcher(tmp_path) as launch:
        whole = launch(tmp_path / "whole", kind=lagged)
        still = launch(tmp_path / "still", kind=lagged | STILL)
        killed = tmp_path / "killed"
        launch(killed, kill="saving", expect=-signal.SIGKILL, kind=lagged)
        launch(killed, kind=lagged)
        longer = shutil.copytree(whole, tmp_path / "longer")
        launch(longer, expect=78, kind=lagged | {"train.iterations": 4})
        said = (tmp_path / "said.txt").read_text()
    assert sampled(whole, 1) == sampled(still, 1)
    assert sampled(whole, 2) != sampled(still, 2)
    updates = [(r["iteration"], r["values"]) for r in log_of(whole) if r["phase"] == "train"]
    ratios = {t: values["ratio/max"] for t, values in reversed(updates)}  # of first updates
    assert abs(ratios[0] - 1.0) < 1e-5 and ratios[1] > 1.001
    assert files_of(killed, "groups") == files_of(whole, "groups")
    assert log_of(killed) == log_of(whole)
    assert "train.iterations cannot be raised" in said
    assert files_of(longer, "groups") == files_of(whole, "groups")  # its result is still there


def sampled(run, iteration):
    """Return the responses of an iteration that a run learned from."""
    rows = map(json.loads, (run / "groups.jsonl").read_text().splitlines())
    return [row["responses"] for row in rows if row["iteration"] == iteration]
