"""Supervised fine-tuning: the likelihood of one response to each prompt, at k=0."""

from __future__ import annotations

from collections.abc import Callable

from ssppo_jax.losses.core import clean, sequence_mean, weighted_mean
from ssppo_jax.types import Batch, Mean, Metrics, Policy

ROWS = "response"

Loss = Callable[[Policy, Batch], tuple[Mean, Metrics]]


def sft(policy: Policy, batch: Batch) -> tuple[Mean, Metrics]:
    """SFT: -log pi(y_t | x, y_<t), averaged over all tokens of the batch's responses.

    Prompts are read and not learned (TRL's `completion_only_loss`). Every token weighs the same, so
    a long response weighs more than a short one, as in TRL's SFTTrainer."""
    policy, batch = clean(policy, batch)
    tokens = batch.mask[:, 0] * batch.weight[:, None]
    nll = weighted_mean(-policy.logp[:, 0], tokens)
    return nll, {"term/nll": nll}


def with_sft(loss: Loss, weight: float) -> Loss:
    """Add weight * NLL(winner) to a pair loss, the NLL per token, averaged over rows.

    arXiv 2404.19733 (iterative RPO) eq. 1, and arXiv 2405.16436, whose implementation in TRL was
    `rpo_alpha`. TRL averages over all tokens of the batch, the papers per response, as here. It
    keeps the winner's likelihood from falling together with the loser's."""

    def both(policy: Policy, batch: Batch) -> tuple[Mean, Metrics]:
        mean, metrics = loss(policy, batch)
        policy, batch = clean(policy, batch)
        nll = -sequence_mean(policy.logp, batch.mask)[:, 0]
        term = weighted_mean(weight * nll, batch.weight)
        return Mean(mean.total + term.total, mean.weight), metrics | {"term/sft": term}

    return both


LOSSES = {"sft": sft}
