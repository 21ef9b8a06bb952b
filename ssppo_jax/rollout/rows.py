"""Define judged samples and the training rows made of them.

A row is a selected pair, a whole group, a policy and its opponent, or one response. A loss's module
says which one it wants (`losses.ROWS`). Rows hold no log-probs yet: scoring adds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from ssppo_jax.data import EncodedPrompt
from ssppo_jax.data.buckets import right_padded
from ssppo_jax.oracles.protocol import take_rows
from ssppo_jax.types import FINISH_EOS, Batch, Samples, Verdict


class Judged(NamedTuple):
    """Hold M prompts, K responses to each, and the oracle's verdict; no prompt failed."""

    encoded: list[EncodedPrompt]
    samples: Samples  # NumPy, leading axis M
    texts: list[list[str]]  # M x K
    verdict: Verdict
    # [M,K] P(y > the policy that sampled), where the data says it; else it comes from the verdict
    win_rate: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Judged:
        """Return some of the prompts, in the order of `rows`."""
        return Judged(
            [self.encoded[i] for i in rows],
            Samples(*(x[rows] for x in self.samples)),
            [self.texts[i] for i in rows],
            take_rows(self.verdict, rows),
            None if self.win_rate is None else self.win_rate[rows],
        )


class Rows(NamedTuple):
    """Hold M training rows without log-probs."""

    batch: Batch  # NumPy
    samples: Samples  # NumPy, the responses of the rows
    records: list[dict]  # one per row, for people
    stats: dict[str, float]


def samples_of(ids: Sequence[Sequence[np.ndarray]], slots: int, k: int) -> Samples:
    """Return B groups of K given responses as if they had been sampled; log-probs are 0.

    Args:
      ids: B x K rows of token ids.
      slots: T, completion slots.
      k: K.
    """
    shape = (len(ids), k, slots)
    tokens, length = right_padded((row for group in ids for row in group), shape)
    logp = np.zeros(shape, np.float32)
    return Samples(tokens, length, logp, logp, np.full(length.shape, FINISH_EOS, np.int8))


def joined(parts: Sequence[Samples], axis: int = 0) -> Samples:
    """Return samples of several batches as one; along axis 1 those of the same prompts."""
    return jax.tree.map(lambda *x: np.concatenate(x, axis), *parts)


def batch_of(encoded: Sequence[EncodedPrompt], samples: Samples, **fields: np.ndarray) -> Batch:
    """Pad prompts and completions into a batch; fields that are not given hold neutral values."""
    ids = [e.tokens for e in encoded]
    prompt, length = right_padded(ids, (len(ids), max(map(len, ids), default=1)))
    mask = (np.arange(samples.tokens.shape[2]) < samples.length[..., None]).astype(np.float32)
    per_response, zeros = np.zeros(mask.shape[:2], np.float32), np.zeros_like(mask)
    batch = Batch(
        prompt=prompt,
        prompt_length=length,
        completion=samples.tokens,
        mask=mask,
        old_logp=zeros,
        ref_logp=zeros,
        init_logp=zeros,
        win_rate=per_response + 0.5,
        target=per_response + 0.5,
        p_win=np.full(length.shape, 0.5, np.float32),
        similarity=np.zeros(length.shape, np.float32),
        advantage=per_response,
        weight=np.ones(length.shape, np.float32),
    )
    return batch._replace(**fields)


def record_of(iteration: int, e: EncodedPrompt, **texts) -> dict:
    return {"iteration": iteration, "prompt_id": e.prompt.id, "prompt": e.prompt.text, **texts}


def group_means(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the mean over B groups of each quantity [B], summed in float64; 0 of no group."""
    return {
        name: float(np.float32(np.sum(x, dtype=np.float64)) / np.float32(max(len(x), 1)))
        for name, x in values.items()
    }


def mean_or_zero(x: np.ndarray) -> float:
    """Return the mean of x, or 0 if x is empty."""
    return float(np.mean(x)) if x.size else 0.0
