"""Turn K rewards into K advantages, on the host in NumPy.

Rewards are those of one iteration, so an advantage that is scaled by the batch sees all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from ssppo_jax.config import bind
from ssppo_jax.losses import ADVANTAGES
from ssppo_jax.losses.advantages import soft_overlong, zero_std
from ssppo_jax.rollout.pairs import mean_win_rate
from ssppo_jax.rollout.rows import Judged, Rows, batch_of, group_means, mean_or_zero, record_of
from ssppo_jax.types import FINISH_LENGTH, FINISH_NAMES, Verdict


@dataclasses.dataclass(frozen=True)
class Groups:
    """Hold B groups of K responses."""

    reward: np.ndarray  # [B,K] float32, length penalty included
    advantage: np.ndarray  # [B,K] float32


def group_rows(config: ConfigDict, judged: Judged, iteration: int) -> Rows:
    """Make group rows: all K responses with their advantages (see `make_groups`)."""
    groups, stats = make_groups(
        reward_of(config, judged.verdict),
        np.asarray(judged.samples.length),
        bind(ADVANTAGES, config.advantage),
        max_length=config.sampling.max_new_tokens,
        overlong_buffer_len=overlong_buffer(config),
        overlong_penalty_factor=config.group.overlong_penalty_factor,
    )
    truncated = judged.samples.finish == FINISH_LENGTH
    batch = batch_of(judged.encoded, judged.samples, advantage=groups.advantage)
    if config.group.mask_truncated_completions:
        batch = batch._replace(mask=batch.mask * ~truncated[:, :, None])
    records = [
        record_of(iteration, e, answer=e.prompt.meta.get("answer"), responses=texts)
        | {"reward": reward.tolist(), "advantage": worth.tolist(), "length": length.tolist()}
        | {"finish": [FINISH_NAMES[f] for f in finish]}
        for e, texts, reward, worth, length, finish in zip(
            judged.encoded,
            judged.texts,
            groups.reward,
            groups.advantage,
            judged.samples.length,
            judged.samples.finish,
            strict=True,
        )
    ]
    stats |= {
        "group/truncated": mean_or_zero(np.asarray(truncated)),
        "group/rows": float(len(records)),
    }
    return Rows(batch, judged.samples, records, stats)


def overlong_buffer(config: ConfigDict) -> int:
    """Return the tokens over which the length penalty grows; -1 means a fifth of the completion
    slots.
    """
    given, slots = config.group.overlong_buffer_len, config.sampling.max_new_tokens
    return max(slots // 5, 1) if given < 0 else given


def reward_of(config: ConfigDict, verdict: Verdict) -> np.ndarray:  # [B,K] float32
    """Return the oracle's rewards; for an oracle of preferences, each response's win rate in its
    group.
    """
    if verdict.reward is not None:
        return verdict.reward
    assert verdict.preference is not None  # a verdict has one of the two
    rate = mean_win_rate(verdict.preference, include_self=config.pairs.include_self)
    return rate.astype(np.float32)


def teaches(reward: np.ndarray) -> np.ndarray:  # [B,K] as the oracle gave it -> [B] bool
    """Return whether the rewards of each group differ.

    A group of equal rewards has no advantage, and DAPO's dynamic sampling leaves it out. The
    oracle's reward decides, before any length penalty: arXiv 2503.14476 eq. 11 speaks of the
    accuracy.
    """
    return ~np.asarray(zero_std(reward))


def make_groups(
    reward: np.ndarray,  # [B,K] float32, no failed rows
    length: np.ndarray,  # [B,K] tokens
    advantage: Callable[[np.ndarray], np.ndarray],  # of `ADVANTAGES`, its keywords bound
    *,
    max_length: int,
    overlong_buffer_len: int = 0,
    overlong_penalty_factor: float = 1.0,
) -> tuple[Groups, dict[str, float]]:
    """Add the length reward, if any, and turn rewards into advantages; statistics are means over
    groups.

    Args:
      max_length: completion slots, where the length reward reaches -overlong_penalty_factor
      overlong_buffer_len: tokens before max_length over which it falls (DAPO's soft overlong
        punishment); 0: none
      overlong_penalty_factor: its weight
    """
    shaped = np.asarray(reward, np.float64)
    if overlong_buffer_len:
        penalty = soft_overlong(
            np.asarray(length), max_length=max_length, buffer=overlong_buffer_len
        )
        shaped = shaped + overlong_penalty_factor * penalty
    value = advantage(shaped) if len(shaped) else np.zeros_like(shaped)
    groups = Groups(shaped.astype(np.float32), np.asarray(value, np.float32))
    return groups, _stats(np.asarray(reward, np.float64), groups)


def _stats(reward: np.ndarray, groups: Groups) -> dict[str, float]:
    """Average the oracle's reward (mean, spread in a group, best of K) and the shaped one."""
    return group_means(
        {
            "reward/mean": reward.mean(axis=1),
            "reward/std": reward.std(axis=1, ddof=1),
            "reward/best_of_k": reward.max(axis=1),
            "reward/shaped": groups.reward.mean(axis=1),
            "frac_reward_zero_std": ~teaches(reward),
            "advantage/abs": np.abs(groups.advantage).mean(axis=1),
        }
    )
