"""A killed run that learns from groups, sampled otherwise than trained and weighed, and starts
iterations from its best policy, ends exactly where the uninterrupted run does. Its rows are packed,
so a step has several shapes."""

import json
import signal

from resuming import files_of, launcher, log_of

SETTINGS = {
    "loss.name": "sspo",
    "sampling.param_dtype": "int8",
    "sampling.top_k": 20,
    "train.importance_sampling_correction": "true",
    "train.importance_sampling_mode": "token_truncate",
    "train.micro_batches": 1,
    "train.max_token_len": 300,
    "train.padding_free": "true",
    "train.iterations": 4,
    "eval.previous": "true",
    "eval.oracles": "keywords",
    # Always 0 here: the first is the best, the third iteration starts from it and is the last.
    "train.select_by": "eval/keywords/reward",
    "train.carry": "best",
    "train.patience": 2,
}


def outcome(workdir):
    best = (workdir / "policy_best" / "model.safetensors").read_bytes()
    return files_of(workdir, "groups") | {"best": best}, log_of(workdir)


def test_groups_and_what_was_best_continue_as_pairs_do(tmp_path):
    with launcher(tmp_path) as launch:
        whole = launch(tmp_path / "whole", kill="telling policies", kind=SETTINGS)
        said = (tmp_path / "said.txt").read_text()
        killed = tmp_path / "killed"
        launch(killed, kill="stopped while sampling", expect=75, kind=SETTINGS)
        launch(killed, kill="saving", expect=-signal.SIGKILL, kind=SETTINGS)
        launch(killed, kind=SETTINGS)
    (files, log), result = outcome(whole), json.loads((whole / "result.json").read_text())
    assert outcome(killed) == (files, log)
    assert result["best_iteration"] == 1 and files["best"] != files["policy/model.safetensors"]
    first, second, third = [line for line in said.splitlines() if line.startswith("policy ")]
    assert first != second == third
    steps = [r["step"] for r in log if r["phase"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]  # the count goes on where parameters go back
