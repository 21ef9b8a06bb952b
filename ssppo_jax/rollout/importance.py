"""Weigh responses that were not drawn from the trainer's distribution.

Sampling departs from pi_t, the policy that is trained, by `sampling.param_dtype`, by another
temperature than that of the log-probs, and by top-k, top-p and min-p. With q for what a token was
drawn from (`Samples.sampling_logp`) and p for the trainer's (`Batch.old_logp`), a sequence weighs

    W = prod_t p_t / q_t    and a token    w_t = p_t / q_t,    cut at `clip_max`.

E_q[W f(y)] = E_p[f(y)], so sequence weights without a cut give a policy gradient without bias,
where q draws every token that p does. A token that top-k, top-p or min-p never draws stays out:
its share of the gradient is lost, and no weight brings it back. Token weights correct each token's
own draw and not that of the tokens before it; their variance does not grow with the length.

The names are TRL's (GRPOConfig, `vllm_importance_sampling_*`); verl has `rollout_is` and
`rollout_is_threshold`. As in TRL, the weights multiply the surrogate and leave the KL term alone.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from ssppo_jax.losses import ROWS
from ssppo_jax.types import Batch, Samples

MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
MAX_LOG_WEIGHT = 20.0  # e^20 = 4.9e8: larger weights would overflow in a product


def importance_weights(
    old_logp: Float[np.ndarray, "M K T"],
    sampling_logp: Float[np.ndarray, "M K T"],
    mask: Float[np.ndarray, "M K T"],
    *,
    mode: str,
    clip_max: float,
) -> Float[np.ndarray, "M K T"]:
    """Return the weight of every token, float32; of a sequence mode the same at each of its tokens.

    Args:
      old_logp: log-probs under pi_t, as the trainer computes them.
      sampling_logp: log-probs under the distribution that the tokens were drawn from.
      mask: 1 where a token counts; elsewhere the two may hold anything, and token weights are 1.
      mode: one of `MODES`. `truncate` sets larger weights to clip_max, `mask` to 0.
      clip_max: the largest weight; 0 for none.
    """
    log_ratio = np.where(mask > 0, np.subtract(old_logp, sampling_logp, dtype=np.float64), 0.0)
    if mode.startswith("sequence"):
        log_ratio = np.broadcast_to(log_ratio.sum(-1, keepdims=True), log_ratio.shape)
    weight = np.exp(np.clip(log_ratio, -MAX_LOG_WEIGHT, MAX_LOG_WEIGHT))
    if clip_max:
        above = 0.0 if mode.endswith("mask") else clip_max
        weight = np.where(weight > clip_max, above, weight)
    return weight.astype(np.float32)


def weighed(config: ConfigDict, batch: Batch, samples: Samples) -> tuple[Batch, dict[str, float]]:
    """Return a scored batch with its importance weights, and what they are like.

    - Group losses get one weight for each token (`Batch.importance_weight`).
    - Opponent losses get them for the policy's own sample. The opponent was drawn from a mixture,
      which is meant to differ from pi_t: its weights are 1.
    - A pair loss takes whole pairs, so its row's weight is multiplied by both responses' weights.
      This is exact for two samples per prompt. Of more, the weights of those that were not chosen
      are left out.
    - A response loss (SFT): the row's weight is multiplied by its response's.

    The metrics are over sequences or tokens, as the mode: `importance_sampling_ratio/min`, `mean`
    and `max`, the share above clip_max (`importance_sampling_ratio/clipped`), and the effective
    sample size, (sum w)^2 / (n sum w^2)."""
    train = config.train
    if not train.importance_sampling_correction:
        return batch, {}
    mode, kind = train.importance_sampling_mode, ROWS.get(config.loss.name)
    given = tuple(map(np.asarray, (batch.old_logp, samples.sampling_logp, batch.mask)))
    weight = importance_weights(*given, mode=mode, clip_max=train.importance_sampling_clip_max)
    whole = importance_weights(*given, mode=mode, clip_max=0.0)
    counted = given[2] > 0
    if mode.startswith("sequence"):
        counted &= np.arange(counted.shape[-1]) == 0
    if kind == "opponent":
        weight[:, 1], counted[:, 1] = 1.0, False
    if kind in ("group", "opponent"):
        batch = batch._replace(importance_weight=weight)
    else:
        batch = batch._replace(weight=batch.weight * weight[:, :, 0].prod(1))
    above = whole > (train.importance_sampling_clip_max or np.inf)
    return batch, _stats(weight[counted], above[counted])


def _stats(weight: np.ndarray, above: np.ndarray) -> dict[str, float]:
    if not weight.size:
        return {}
    wide = weight.astype(np.float64)
    squares = len(wide) * np.square(wide).sum()
    values = {
        "min": wide.min(),
        "mean": wide.mean(),
        "max": wide.max(),
        "clipped": above.mean(),
        "effective_sample_size": wide.sum() ** 2 / squares if squares else 0.0,
    }
    return {f"importance_sampling_ratio/{name}": float(value) for name, value in values.items()}
