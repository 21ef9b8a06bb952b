"""A finished run whose `train.iterations` is raised goes on."""

import shutil

from resuming import files_of, launcher, log_of


def test_a_run_that_was_made_longer_ends_like_one_that_began_so(tmp_path):
    """Where neither prompts nor rates depend on the number of iterations. One that loses its random
    keys on the way is told apart."""
    kind = {"train.prompts_per_iteration": 8, "optimizer.scope": "iteration"}
    with launcher(tmp_path) as launch:
        longer = launch(tmp_path / "longer", kind=kind | {"train.iterations": 1})
        other = shutil.copytree(longer, tmp_path / "other")
        launch(longer, kind=kind)
        launch(other, kill="other keys", kind=kind)
        whole = launch(tmp_path / "whole", kind=kind)
    assert files_of(longer) == files_of(whole)
    assert log_of(longer) == log_of(whole)
    policy = "policy/model.safetensors"
    assert files_of(other)[policy] != files_of(whole)[policy]
