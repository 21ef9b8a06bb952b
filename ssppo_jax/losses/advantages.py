"""Advantages: what a reward is worth beside the other rewards of its group (or batch).

`advantage(reward [B,K]) -> [B,K]`, pure, on NumPy and JAX arrays alike; K responses per prompt. A
group whose rewards are all equal gets exactly 0 from every function that has a group baseline:
rounding of the mean is not left to be divided by a tiny deviation. `zero_std` finds those
groups, for the log and for DAPO's dynamic sampling.

None of them sees failed verdicts: such groups are dropped before. Half precisions are not raised;
pass float32."""

from __future__ import annotations

from ssppo_jax.errors import ConfigError
from ssppo_jax.types import Array

STD_OFFSET = 1e-4  # TRL's and the DeepSeekMath code's: (R - mean)/(std + 1e-4)
VARIANCE_OFFSET = 1e-8  # verl's masked_whiten
SCALES = ("group", "batch", "none")


def zero_std(reward: Array) -> Array:  # [B,K]
    """Whether all rewards of a group are equal -> [B] bool: such a group teaches nothing (DAPO
    leaves it out)."""
    return reward.max(axis=1) == reward.min(axis=1)


def _centred(reward: Array) -> Array:
    """R minus the group's mean -> [B,K]; exactly 0 where all rewards are equal. Raises ValueError
    if K < 2."""
    if reward.ndim != 2 or reward.shape[1] < 2:
        raise ValueError(
            f"a group advantage needs rewards [B,K] with K >= 2, got shape {tuple(reward.shape)}:"
            " raise sampling.num_samples, or use reinforce_plus_plus, which has no group baseline"
        )
    return (reward - reward.mean(axis=1, keepdims=True)) * (~zero_std(reward))[:, None]


def _std(x: Array, **axes) -> Array:
    """Standard deviation with Bessel's correction, as torch.std."""
    return x.std(ddof=1, keepdims=True, **axes)


def grpo(reward: Array, *, scale_rewards: str = "group") -> Array:  # [B,K]
    """(R - mean of the group)/(std + 1e-4), std of the group, of the whole batch, or left out.

    GRPO (arXiv 2402.03300); names and the unbiased std are TRL's. `batch` is what arXiv 2508.08221
    advises; `none` is Dr. GRPO's.

    Args:
      scale_rewards: what the centred reward is divided by: std of the group, of the batch, or none
    """
    if scale_rewards not in SCALES:
        raise ConfigError(
            f"advantage grpo: scale_rewards={scale_rewards!r} must be one of {', '.join(SCALES)}"
        )
    centred = _centred(reward)
    if scale_rewards == "none":
        return centred
    return centred / (_std(reward, axis=1 if scale_rewards == "group" else None) + STD_OFFSET)


def dr_grpo(reward: Array) -> Array:  # [B,K]
    """R - mean of the group, not divided by anything (Dr. GRPO, arXiv 2503.20783)."""
    return _centred(reward)


def rloo(reward: Array) -> Array:  # [B,K]
    """R - mean of the other K - 1 rewards of its group (RLOO, arXiv 2402.14740): K/(K-1) times
    `dr_grpo`."""
    centred, k = _centred(reward), reward.shape[1]
    return centred * (k / (k - 1))


def reinforce_plus_plus(reward: Array) -> Array:  # [B,K]
    """(R - mean)/sqrt(var + 1e-8) over the whole batch, no group baseline (REINFORCE++, arXiv
    2501.03262).

    Whitened over responses. The papers' codes whiten over tokens, so that a response counts by its
    length, and take the KL penalty into the reward; here the KL is a term of the loss. A group of
    equal rewards does get an advantage."""
    if reward.size < 2:
        raise ValueError(
            "reinforce_plus_plus whitens over the batch: it needs 2 rewards or more, got"
            f" {reward.size}"
        )
    equal = reward.max() == reward.min()
    variance = _std(reward) ** 2
    return (reward - reward.mean()) * (~equal) / (variance + VARIANCE_OFFSET) ** 0.5


def reinforce_plus_plus_baseline(reward: Array) -> Array:  # [B,K]
    """R - mean of its group, divided by sqrt(var + 1e-8) of those differences over the batch (arXiv
    2501.03262).

    Whitened over responses (see `reinforce_plus_plus`), whose mean is 0 already.
    """
    centred = _centred(reward)
    return centred / (_std(centred) ** 2 + VARIANCE_OFFSET) ** 0.5


def soft_overlong(length: Array, *, max_length: int, buffer: int) -> Array:  # [B,K] tokens
    """DAPO's length reward, to be added to R: 0 up to max_length - buffer, then falling linearly to
    -1 at max_length.

    arXiv 2503.14476 eq. 13: -1 beyond max_length too.
    """
    if not 0 < buffer <= max_length:
        raise ConfigError(
            f"soft_overlong: buffer={buffer!r} must be in [1, max_length={max_length!r}]"
        )
    return ((max_length - buffer - length) / buffer).clip(-1.0, 0.0)


ADVANTAGES = {
    function.__name__: function
    for function in (grpo, dr_grpo, rloo, reinforce_plus_plus, reinforce_plus_plus_baseline)
}
