"""Compare policies on held-out prompts: `policies` samples and compares, `estimates` holds win
rates with their intervals, `references` reads fixed outputs."""

from ssppo_jax.evaluate.estimates import (
    Estimate,
    cross_win_probability,
    intervals,
    length_controlled_win_rate,
    logged,
    mean_interval,
    shown,
    win_rate,
)
from ssppo_jax.evaluate.policies import (
    HeldOut,
    build_second_opinions,
    compare,
    compare_all,
    evaluate,
    evaluation_data,
    prefix,
    rewards,
)
from ssppo_jax.evaluate.references import read_references

__all__ = [
    "Estimate",
    "HeldOut",
    "build_second_opinions",
    "compare",
    "compare_all",
    "cross_win_probability",
    "evaluate",
    "evaluation_data",
    "intervals",
    "length_controlled_win_rate",
    "logged",
    "mean_interval",
    "prefix",
    "read_references",
    "rewards",
    "shown",
    "win_rate",
]
