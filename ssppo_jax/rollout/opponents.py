"""Make opponent rows: a sample of the policy and one of the mixture that it plays against."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from ssppo_jax.oracles.links import preference_of
from ssppo_jax.rollout.rows import Judged, Rows, batch_of, mean_or_zero, record_of


def opponent_rows(config: ConfigDict, judged: Judged, iteration: int) -> Rows:
    """Make opponent rows: the policy's sample at 0 and its opponent's at 1, whoever wins."""
    preference = preference_of(judged.verdict, temperature=config.oracle.reward_temperature)
    p_win = preference[:, 0, 1].astype(np.float32)
    rate = np.stack([p_win, 1.0 - p_win], axis=1)
    batch = batch_of(judged.encoded, judged.samples, win_rate=rate, target=rate, p_win=p_win)
    records = [
        record_of(iteration, e, policy=texts[0], opponent=texts[1]) | {"p_win": float(p)}
        for e, texts, p in zip(judged.encoded, judged.texts, p_win, strict=True)
    ]
    values = {
        "opponent/p_win": mean_or_zero(p_win),
        "opponent/tied": mean_or_zero(p_win == 0.5),
        "opponent/rows": float(len(p_win)),
    }
    return Rows(batch, judged.samples, records, values)
