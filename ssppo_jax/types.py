"""The records that flow through a run, and the letters their shapes are written in.

    prompts [B,P] -> generate -> samples [B,K,T] -> oracle -> verdict [B,K,K] or [B,K] -> assemble
    -> batch -> train

    B prompts    K samples per prompt (2 after winner/loser selection)    P prompt slots    T
    completion slots V vocabulary    D width    N layers    H / G query / key-value heads    E head
    dim    F mlp width

K is a real array axis: nothing re-groups rows by id. Pair losses are the case K=2, winner at 0,
loser at 1. Arrays are NumPy on the host and `jax.Array` on the device; the records do not care."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

Array = Any  # np.ndarray or jax.Array
PyTree = Any

FINISH_EOS, FINISH_LENGTH = 0, 1  # Samples.finish codes
FINISH_NAMES = ("eos", "length")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt as the user wrote it. `id` addresses its random keys; `meta` (an answer, say) is
    for oracles."""

    id: str
    messages: tuple[
        dict, ...
    ]  # chat turns, each {"role": ..., "content": ...}, the last one from the user
    meta: dict = dataclasses.field(default_factory=dict)

    @property
    def text(self) -> str:
        """The last user turn, for oracles and for people to read."""
        return self.messages[-1]["content"]


class Prompts(NamedTuple):
    """A padded batch of tokenised prompts, right-padded; masks come from `length`, never from
    `tokens != pad`."""

    tokens: Array  # [B,P] int32
    length: Array  # [B] int32, >= 1
    address: Array  # [B] uint32, stable per prompt id: where this prompt's random keys live


class Samples(NamedTuple):
    """K completions per prompt. A sampled EOS is a token like any other and counts; a synthetic one
    never exists."""

    tokens: Array  # [B,K,T] int32
    length: Array  # [B,K] int32, tokens sampled, EOS included
    logp: Array  # [B,K,T] float32, raw log-probs (temperature 1, full vocabulary); 0 in padding
    sampling_logp: (
        Array  # [B,K,T] float32, under the distribution actually sampled from; 0 in padding
    )
    finish: Array  # [B,K] int8: FINISH_EOS or FINISH_LENGTH


@dataclasses.dataclass(frozen=True)
class Failed:
    """An oracle that could not answer. Never a number: the whole prompt group is dropped and
    counted."""

    reason: str


class Verdict(NamedTuple):
    """What an oracle says of B groups of K responses. Exactly one of `preference` and `reward` is
    present."""

    preference: np.ndarray | None  # [B,K,K] float32, P(y_i > y_j) in [0,1], P + P^T = 1
    reward: np.ndarray | None  # [B,K] float32
    failed: tuple[Failed | None, ...]  # length B; rows with a Failed hold NaN and must not be used
    parts: dict[str, np.ndarray] | None = (
        None  # named components, each of the same shape, logged beside it
    )


class Policy(NamedTuple):
    """What a loss may see of the model being trained."""

    logp: Array  # [B,K,T] float32, raw token log-probs; arbitrary in padding
    hidden: Array  # [B,K,D] float32, pooled hidden states, not normalised


class Batch(NamedTuple):
    """What a loss may see of the data. Fields a loss does not use may hold zeros.

    Padding rows (to fill the last batch) have `weight` 0 and `mask` all 0.
    """

    prompt: Array  # [B,P] int32
    prompt_length: Array  # [B] int32
    completion: Array  # [B,K,T] int32
    mask: Array  # [B,K,T] float32, 1 on sampled tokens (EOS included)
    # [B,K,T] float32, under pi_t: the policy that sampled, frozen at the start of the iteration
    old_logp: Array
    ref_logp: Array  # [B,K,T] float32, under the loss's reference (pi_t, or the initial policy)
    init_logp: (
        Array  # [B,K,T] float32, under the initial policy (for KL logging; zeros when not scored)
    )
    win_rate: Array  # [B,K] float32, estimated P(y > pi_t), before any gate
    target: Array  # [B,K] float32, calibrated (gated) win rate; equals win_rate without a gate
    p_win: Array  # [B] float32, P(winner > loser) as the oracle said it
    similarity: Array  # [B] float32, semantic similarity of winner and loser in [0,1]
    advantage: Array  # [B,K] float32, group advantages (group losses)
    weight: Array  # [B] float32, 1 for a real row, 0 for padding


class TrainState(NamedTuple):
    """Everything a train step updates."""

    params: PyTree
    opt_state: PyTree
    step: Array  # [] int32, optimizer steps taken


class Mean(NamedTuple):
    """A mean that is not divided yet, so that micro-batches and devices merge exactly: sum both,
    divide once."""

    total: Array  # [] float32
    weight: Array  # [] float32

    def merge(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    def result(self) -> Array:
        """total / weight, and 0 where nothing was counted."""
        safe = jnp.where(self.weight == 0, 1.0, self.weight)
        return jnp.where(self.weight == 0, 0.0, self.total / safe)


class Max(NamedTuple):
    """A maximum over everything merged."""

    value: Array  # [] float32

    def merge(self, other: Max) -> Max:
        return Max(jnp.maximum(self.value, other.value))

    def result(self) -> Array:
        return self.value


class Min(NamedTuple):
    """A minimum over everything merged."""

    value: Array  # [] float32

    def merge(self, other: Min) -> Min:
        return Min(jnp.minimum(self.value, other.value))

    def result(self) -> Array:
        return self.value


Metrics = dict[str, Mean | Max | Min]
