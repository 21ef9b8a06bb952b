"""A killed run that learns from groups, sampled otherwise than trained and weighed, ends exactly
where the uninterrupted run does. Its rows are packed, so a step has several shapes."""

from resuming import check_continues

SETTINGS = {
    "loss.name": "sspo",
    "sampling.param_dtype": "int8",
    "sampling.top_k": 20,
    "train.importance_sampling_correction": "true",
    "train.importance_sampling_mode": "token_truncate",
    "train.micro_batches": 1,
    "train.max_token_len": 300,
    "train.padding_free": "true",
}


def test_groups_continue_as_pairs_do(tmp_path):
    check_continues(tmp_path, "groups", SETTINGS)
