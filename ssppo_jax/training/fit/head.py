"""Define what is fitted on preference pairs: a model with a head, its rows, and its loss.

A head sees a pair as K = 2 and says one number for each of the two, `Policy.hidden` [B,2,1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ssppo_jax.data import EncodedPrompt
from ssppo_jax.losses.core import clean, weighted_mean
from ssppo_jax.models.policy import Apply
from ssppo_jax.oracles.links import bradley_terry as link
from ssppo_jax.rollout.rows import batch_of, samples_of
from ssppo_jax.steps import Loss
from ssppo_jax.types import Array, Batch, Given, Mean, Metrics, Policy, Prompt, PyTree

TIE = 1e-6  # a preference this close to 1/2 teaches nothing
ROUND = 16  # tokens that the longest response is rounded up to


@dataclasses.dataclass(frozen=True)
class Head:
    """Hold a model that is fitted on pairs.

    Attributes:
        encode: gives prompts their ids, and says by id, with length or reason, which are left
            out.
        rows: makes training rows of encoded prompts, without a log-prob.
        abstract: the parameters' shapes, dtypes and shardings.
        place: gives shardings to shapes with the parameters' names, as the optimizer's state has.
        load: loads the parameters that fitting begins with, placed.
        apply: the model as a loss sees it.
        loss: of a batch of pairs.
        export: writes a folder that the oracle `oracle` loads.
        oracle: the oracle's name, which is the folder's.
        tempered: the oracle gives rewards, whose preferences depend on `oracle.reward_temperature`.
    """

    encode: Callable[[list[Prompt]], tuple[list[EncodedPrompt], list[tuple[str, int | str]]]]
    rows: Callable[[Sequence[EncodedPrompt]], Batch]
    abstract: PyTree
    place: Callable[[PyTree], PyTree]
    load: Callable[[], PyTree]
    apply: Apply
    loss: Loss
    export: Callable[[PyTree, Path], Path]
    oracle: str
    tempered: bool


def pairs_of(given: Given, temperature: float) -> list[tuple[int, int, float]]:
    """Return (winner, loser, P(winner beats loser)) of every pair of K responses that is no tie.

    Args:
      given: responses with preferences or rewards.
      temperature: of the link from rewards (`oracle.reward_temperature`); 0: the higher wins.
    """
    if given.preference:
        p = np.array(given.preference)
    else:
        p = link(np.array([given.reward]), temperature=temperature)[0]
    found = []
    for i, j in zip(*np.triu_indices(len(given.texts), 1), strict=True):
        if abs(p[i, j] - 0.5) > TIE:
            w, l = (i, j) if p[i, j] > 0.5 else (j, i)
            found.append((int(w), int(l), float(p[w, l])))
    return found


def pair_batch(
    encoded: Sequence[EncodedPrompt],
    temperature: float,
    shown: Callable[[EncodedPrompt, int, int], Sequence[np.ndarray]],
    longest: int = 0,
) -> Batch:
    """Return a row for every pair that is no tie.

    Args:
      encoded: prompts with responses.
      temperature: as in `pairs_of`.
      shown: (prompt, winner, loser) -> the ids at 0 and at 1 of the pair's row.
      longest: tokens that a row has room for; 0: those of the longest.
    """
    chosen, inputs, p = [], [], []
    for e in encoded:
        assert e.prompt.given is not None
        for winner, loser, chance in pairs_of(e.prompt.given, temperature):
            chosen.append(e)
            inputs.append(shown(e, winner, loser))
            p.append(chance)
    longest = longest or max((len(ids) for two in inputs for ids in two), default=1)
    samples = samples_of(inputs, -(-longest // ROUND) * ROUND, 2)
    return batch_of(chosen, samples, p_win=np.array(p, np.float32))


def bradley_terry(policy: Policy, batch: Batch) -> tuple[Mean, Metrics]:
    """Fit rewards: -p log s(r_w - r_l) - (1 - p) log s(r_l - r_w), p = `batch.p_win`.

    With p = 1 it is the loss of arXiv 2203.02155 eq. 1 for one pair. `hidden` holds (r_w, r_l)."""
    policy, batch = clean(policy, batch)
    margin = policy.hidden[:, 0, 0] - policy.hidden[:, 1, 0]
    return _finish(_cross_entropy(margin, batch.p_win), margin, batch)


def both_orders(policy: Policy, batch: Batch) -> tuple[Mean, Metrics]:
    """Fit a comparison: the mean cross-entropy of both orders of a pair.

    `hidden` holds the logit with the winner shown first, and the one with the loser shown first.
    PairRM (arXiv 2306.02561 section 3) shuffles the two; both at once have no first place to
    learn. The margin is half the difference of the two logits, which the oracle takes."""
    policy, batch = clean(policy, batch)
    first, second = policy.hidden[:, 0, 0], -policy.hidden[:, 1, 0]
    loss = _cross_entropy(first, batch.p_win) + _cross_entropy(second, batch.p_win)
    return _finish(0.5 * loss, 0.5 * (first + second), batch)


def _cross_entropy(logit: Float[Array, "B"], p: Float[Array, "B"]) -> Float[Array, "B"]:
    return -p * jax.nn.log_sigmoid(logit) - (1.0 - p) * jax.nn.log_sigmoid(-logit)


def _finish(
    loss: Float[Array, "B"], margin: Float[Array, "B"], batch: Batch
) -> tuple[Mean, Metrics]:
    mean = weighted_mean(loss, batch.weight)
    return mean, {
        "term/preference": mean,
        "rewards/margins": weighted_mean(margin, batch.weight),
        "rewards/accuracies": weighted_mean(margin > 0, batch.weight),
    }


def no_logp(mask: Float[Array, "B K T"]) -> Float[Array, "B K T"]:
    """Return what stands for log-probs, which a head has not."""
    return jnp.zeros_like(mask)
