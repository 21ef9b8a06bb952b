"""The records that flow through a run, and the letters their shapes are written in.

    prompts [B,P] -> generate -> samples [B,K,T] -> oracle -> verdict [B,K,K] or [B,K] -> assemble
    -> batch -> train

    B prompts    K samples per prompt (2 after winner/loser selection)    P prompt slots
    T completion slots    V vocabulary    D width    N layers    H query heads    G key-value heads
    E head dim    F mlp width    A any axes

K is a real array axis: nothing re-groups rows by id. Pair losses are the case K=2, winner at 0,
loser at 1. Arrays are NumPy on the host and `jax.Array` on devices; records hold either. `Float` is
float32 and `Int` int32 unless a comment says otherwise."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Int8, PyTree, UInt32

Array = jax.Array | np.ndarray
Scalar = jax.Array | np.ndarray | np.floating | float  # one number, float32 on devices

FINISH_EOS, FINISH_LENGTH = 0, 1  # Samples.finish codes
FINISH_NAMES = ("eos", "length")


@dataclasses.dataclass(frozen=True)
class Given:
    """K responses that came with a prompt, and what the data says of them.

    Exactly one of `preference` and `reward` is there; a single response has neither."""

    texts: tuple[str, ...]
    preference: tuple[tuple[float, ...], ...] = ()  # K x K, P(y_i > y_j)
    reward: tuple[float, ...] = ()  # K
    win_rate: tuple[float, ...] = ()  # K, P(y > the policy that sampled); (): from `preference`


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt as the user wrote it. `id` addresses its random keys; `meta` (an answer, say) is
    for oracles. Prompts of one `canonical` ask the same in other words; empty: the text says it.
    `given` holds responses of the data, where they are trained on in place of samples."""

    id: str
    messages: tuple[dict, ...]  # chat turns {"role": ..., "content": ...}, the last from the user
    meta: dict = dataclasses.field(default_factory=dict)
    canonical: str = ""
    given: Given | None = None

    @property
    def text(self) -> str:
        """Return the last user turn, for oracles and for people to read."""
        return self.messages[-1]["content"]


class Prompts(NamedTuple):
    """A batch of tokenised prompts, right-padded; masks come from `length`, never from `tokens !=
    pad`."""

    tokens: Int[Array, "B P"]
    length: Int[Array, "B"]  # >= 1
    address: UInt32[Array, "B"]  # stable per prompt id: where this prompt's random keys live


class Samples(NamedTuple):
    """K completions per prompt. A sampled EOS is a token like any other and counts; none is ever
    added."""

    tokens: Int[Array, "B K T"]
    length: Int[Array, "B K"]  # tokens sampled, EOS included
    # Over the full vocabulary, at temperature 1 or where the loss takes log-probs; 0 in padding.
    logp: Float[Array, "B K T"]
    sampling_logp: Float[Array, "B K T"]  # under the distribution sampled from; 0 in padding
    finish: Int8[Array, "B K"]  # FINISH_EOS or FINISH_LENGTH


@dataclasses.dataclass(frozen=True)
class Failed:
    """An oracle's failure on a prompt: the whole prompt group is dropped and counted."""

    reason: str


class Verdict(NamedTuple):
    """An oracle's answer on B groups of K responses. Exactly one of `preference` and `reward` is
    given."""

    preference: Float[np.ndarray, "B K K"] | None  # P(y_i > y_j) in [0,1], P + P^T = 1
    reward: Float[np.ndarray, "B K"] | None
    failed: tuple[Failed | None, ...]  # length B; rows with a Failed hold NaN and must not be used
    parts: dict[str, np.ndarray] | None = None  # named components, of the same shape, for the log


class Policy(NamedTuple):
    """What a loss may see of the model being trained."""

    # Over the full vocabulary, at temperature 1; of a group loss at the sampler's temperature,
    # see `group.logprob_temperature`. Arbitrary in padding.
    logp: Float[Array, "B K T"]
    hidden: Float[Array, "B K D"]  # pooled hidden states, not normalised


class Batch(NamedTuple):
    """What a loss may see of the data. Fields a loss does not use may hold zeros.

    Padding rows (to fill the last batch) have `weight` 0 and `mask` all 0."""

    prompt: Int[Array, "B P"]
    prompt_length: Int[Array, "B"]
    completion: Int[Array, "B K T"]
    mask: Float[Array, "B K T"]  # 1 on sampled tokens (EOS included)
    # Under pi_t: the policy that sampled, frozen at the start of the iteration.
    old_logp: Float[Array, "B K T"]
    ref_logp: Float[Array, "B K T"]  # under the loss's reference; a group loss has one for its KL
    init_logp: Float[Array, "B K T"]  # under the initial policy, for the KL log; 0: not scored
    win_rate: Float[Array, "B K"]  # estimated P(y > pi_t), before any gate
    target: Float[Array, "B K"]  # calibrated (gated) win rate; equals win_rate without a gate
    p_win: Float[Array, "B"]  # P(winner > loser) by pairs.win_rate_estimator, not gated
    similarity: Float[Array, "B"]  # semantic similarity of winner and loser in [-1,1]
    advantage: Float[Array, "B K"]  # group advantages (group losses)
    weight: Float[Array, "B"]  # 1 for a real row, 0 for padding and for ties without a label
    # Of tokens that were not drawn from pi_t (`rollout.importance`); None: all are 1.
    importance_weight: Float[Array, "B K T"] | None = None


class TrainState(NamedTuple):
    """Everything a train step updates."""

    params: PyTree[Array]
    opt_state: PyTree[Array]
    step: Int[Array, ""]  # optimizer steps taken


class Mean(NamedTuple):
    """A mean that is not divided yet. Micro-batches and devices merge exactly: sum both parts,
    divide once."""

    total: Scalar
    weight: Scalar

    def merge(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    def result(self) -> Scalar:
        """Return total / weight, and 0 where nothing was counted."""
        safe = jnp.where(self.weight == 0, 1.0, self.weight)
        return jnp.where(self.weight == 0, 0.0, self.total / safe)


class Max(NamedTuple):
    """A maximum over everything merged."""

    value: Scalar

    def merge(self, other: Max) -> Max:
        return Max(jnp.maximum(self.value, other.value))

    def result(self) -> Scalar:
        return self.value


class Min(NamedTuple):
    """A minimum over everything merged."""

    value: Scalar

    def merge(self, other: Min) -> Min:
        return Min(jnp.minimum(self.value, other.value))

    def result(self) -> Scalar:
        return self.value


Metrics = dict[str, Mean | Max | Min]
