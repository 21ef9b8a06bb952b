"""SFT and its term beside a pair loss, against sums written out in NumPy."""

import numpy as np
import pytest
from pair_batches import at_random

from ssppo_jax.losses.preference import dpo
from ssppo_jax.losses.sft import sft, with_sft


def nll_sums(policy, batch):
    """Of each row's first response: the summed -log pi of its real tokens, and their number."""
    sums, counts = [], []
    for logp, mask, weight in zip(policy.logp[:, 0], batch.mask[:, 0], batch.weight, strict=True):
        real = [-float(x) for x, m in zip(logp, mask, strict=True) if m > 0 and weight > 0]
        sums.append(sum(real))
        counts.append(len(real))
    return np.array(sums), np.array(counts)


def test_sft_is_the_mean_over_all_tokens_of_the_first_responses():
    policy, batch = at_random(0)
    sums, counts = nll_sums(policy, batch)
    mean, metrics = sft(policy, batch)
    assert float(mean.result()) == pytest.approx(sums.sum() / counts.sum(), rel=1e-6)
    assert float(mean.weight) == counts.sum()  # so micro-batches of unequal lengths merge exactly
    assert set(metrics) == {"term/nll"}


def test_the_term_beside_a_pair_loss_is_the_mean_over_rows_of_the_nll_per_token():
    policy, batch = at_random(0)
    sums, counts = nll_sums(policy, batch)
    real = np.asarray(batch.weight) > 0
    wanted = 0.3 * np.mean(sums[real] / np.maximum(counts[real], 1))
    alone, _ = dpo(policy, batch, beta=0.2)
    mean, metrics = with_sft(lambda p, b: dpo(p, b, beta=0.2), 0.3)(policy, batch)
    assert float(metrics["term/sft"].result()) == pytest.approx(wanted, rel=1e-6)
    assert float(mean.result()) == pytest.approx(float(alone.result()) + wanted, rel=1e-6)
    assert {"term/preference", "rewards/margins"} < set(metrics)
