"""Shapes and dtypes that annotations state are checked at every call (`conftest.py`)."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from pair_batches import at_random

from ssppo_jax.losses.core import clean, sequence_sum
from ssppo_jax.losses.preference import dpo

ONES = np.ones((2, 3, 4), np.float32)


def test_what_fits_passes():
    assert sequence_sum(ONES, ONES).shape == (2, 3)
    assert dpo(*at_random())[0].weight > 0


@pytest.mark.parametrize("mask", [ONES[:, :2], ONES[0], ONES.astype(int)])
def test_an_array_of_another_shape_or_dtype_is_refused(mask):
    with pytest.raises(TypeCheckError):
        sequence_sum(ONES, mask)


@pytest.mark.parametrize("field", ["old_logp", "advantage", "p_win", "weight"])
def test_a_batch_whose_fields_do_not_fit_together_is_refused(field):
    policy, batch = at_random()
    cut = batch._replace(**{field: getattr(batch, field)[:1]})
    for function in (clean, dpo):
        with pytest.raises(TypeCheckError):
            function(policy, cut)


def test_a_policy_of_another_batch_is_refused():
    policy, batch = at_random()
    with pytest.raises(TypeCheckError):
        dpo(policy._replace(logp=policy.logp[..., :-1]), batch)


def test_ids_must_be_whole_numbers():
    policy, batch = at_random()
    with pytest.raises(TypeCheckError):
        dpo(policy, batch._replace(completion=batch.mask))
