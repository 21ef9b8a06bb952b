"""Keep one response to each prompt: a demonstration, or the best of K."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from ssppo_jax.oracles.links import preference_of
from ssppo_jax.rollout.pairs import scores, select
from ssppo_jax.rollout.rows import Judged, Rows, batch_of, record_of
from ssppo_jax.types import Samples


def response_rows(config: ConfigDict, judged: Judged, iteration: int) -> Rows:
    """Make rows of one response, the best by mean score where there are several.

    Of samples this is rejection sampling fine-tuning (RAFT, arXiv 2304.06767). A group whose
    responses all score the same has no best; its row has weight 0.
    """
    best, tied = _best(config, judged)
    rows = np.arange(len(best))
    samples = Samples(*(x[rows, best][:, None] for x in judged.samples))
    batch = batch_of(judged.encoded, samples, weight=(~tied).astype(np.float32))
    records = [
        record_of(iteration, e, response=texts[i])
        for e, texts, i in zip(judged.encoded, judged.texts, best, strict=True)
    ]
    values = {"responses/rows": float(len(records)), "responses/tied": float(tied.sum())}
    return Rows(batch, samples, records, values)


def _best(config: ConfigDict, judged: Judged) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each group's best response, and which groups have none."""
    count, k = judged.samples.length.shape
    if k == 1:
        return np.zeros(count, np.int32), np.zeros(count, bool)
    matrix = preference_of(judged.verdict, temperature=config.oracle.reward_temperature)
    winner, _, tied = select(scores(np.asarray(matrix, np.float64)))
    return winner, tied
