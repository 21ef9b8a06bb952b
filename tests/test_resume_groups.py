"""A killed run that learns from groups ends exactly where the uninterrupted run does."""

from resuming import check_continues

SETTINGS = {"loss.name": "sspo"}


def test_groups_continue_as_pairs_do(tmp_path):
    check_continues(tmp_path, "groups", SETTINGS)
