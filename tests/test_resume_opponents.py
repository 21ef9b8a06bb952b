"""A killed run that learns from opponents ends exactly where the uninterrupted run does."""

from resuming import check_continues

SETTINGS = {"loss.name": "nash_md", "sampling.num_samples": 2}


def test_opponents_continue_as_pairs_do(tmp_path):
    check_continues(tmp_path, "opponents", SETTINGS)
