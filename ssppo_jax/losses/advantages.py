"""Advantages: a reward compared with the other rewards of its group (or batch).

`advantage(reward [B,K]) -> [B,K]`, pure, on NumPy and JAX arrays alike; K responses per prompt. A
group whose rewards are all equal gets exactly 0 from every function that has a group baseline, so
rounding of the mean is never divided by a tiny deviation.

Groups with failed verdicts are dropped before. Half precisions are not raised; pass float32."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int

from ssppo_jax.errors import ConfigError
from ssppo_jax.types import Array

STD_OFFSET = 1e-4  # TRL's and the DeepSeekMath code's: (R - mean)/(std + 1e-4)
VARIANCE_OFFSET = 1e-8  # verl's masked_whiten
SCALES = ("group", "batch", "none")


def zero_std(reward: Float[Array, "B K"]) -> Bool[Array, "B"]:
    """Find groups whose rewards are all equal: they teach nothing, and DAPO leaves them out."""
    return reward.max(axis=1) == reward.min(axis=1)


def _centred(reward: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """Subtract the group's mean, exactly 0 where all rewards are equal. ValueError if K < 2."""
    if reward.ndim != 2 or reward.shape[1] < 2:
        raise ValueError(
            f"a group advantage needs rewards [B,K] with K >= 2, got shape {tuple(reward.shape)}:"
            " raise sampling.num_samples, or use reinforce_plus_plus, which has no group baseline"
        )
    return (reward - reward.mean(axis=1, keepdims=True)) * (~zero_std(reward))[:, None]


def _std(x: Array, **axes) -> Array:
    """Return the standard deviation with Bessel's correction, as torch.std does."""
    return x.std(ddof=1, keepdims=True, **axes)


def grpo(reward: Float[Array, "B K"], *, scale_rewards: str = "group") -> Float[Array, "B K"]:
    """Return (R - mean of the group)/(std + 1e-4); std of the group, the batch, or left out.

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


def dr_grpo(reward: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """Return R - mean of the group, not divided by anything (Dr. GRPO, arXiv 2503.20783)."""
    return _centred(reward)


def rloo(reward: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """Return R - mean of the other K - 1 rewards of its group: K/(K-1) times `dr_grpo`.

    RLOO, arXiv 2402.14740."""
    centred, k = _centred(reward), reward.shape[1]
    return centred * (k / (k - 1))


def reinforce_plus_plus(reward: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """Return (R - mean)/sqrt(var + 1e-8) over the whole batch, with no group baseline.

    REINFORCE++, arXiv 2501.03262, whitened over responses. The papers' codes whiten over tokens, so
    a response counts by its length. They also take the KL penalty into the reward; here the KL is a
    term of the loss. A group of equal rewards does get an advantage."""
    if reward.size < 2:
        raise ValueError(
            "reinforce_plus_plus whitens over the batch: it needs 2 rewards or more, got"
            f" {reward.size}"
        )
    equal = reward.max() == reward.min()
    variance = _std(reward) ** 2
    return (reward - reward.mean()) * (~equal) / (variance + VARIANCE_OFFSET) ** 0.5


def reinforce_plus_plus_baseline(reward: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """Return R - mean of its group, over sqrt(var + 1e-8) of those differences in the batch.

    arXiv 2501.03262, whitened over responses (see `reinforce_plus_plus`), whose mean is 0."""
    centred = _centred(reward)
    return centred / (_std(centred) ** 2 + VARIANCE_OFFSET) ** 0.5


def soft_overlong(
    length: Int[Array, "B K"], *, max_length: int, buffer: int
) -> Float[Array, "B K"]:
    """Return DAPO's length reward of lengths in tokens, to be added to R.

    0 up to max_length - buffer, then falling linearly to -1 at max_length, and -1 beyond (arXiv
    2503.14476 eq. 13)."""
    if not 0 < buffer <= max_length:
        raise ConfigError(
            f"soft_overlong: buffer={buffer!r} must be in [1, max_length={max_length!r}]"
        )
    return ((max_length - buffer - length) / buffer).clip(-1.0, 0.0)


ADVANTAGES = {
    function.__name__: function
    for function in (grpo, dr_grpo, rloo, reinforce_plus_plus, reinforce_plus_plus_baseline)
}
