"""Compare policies on held-out prompts: `policies` samples and compares, `estimates` holds win
rates with their intervals, `references` reads fixed outputs."""

from ssppo_jax.evaluate.estimates import Estimate, intervals, logged, shown
from ssppo_jax.evaluate.policies import (
    HeldOut,
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
    "compare",
    "compare_all",
    "evaluate",
    "evaluation_data",
    "intervals",
    "logged",
    "prefix",
    "read_references",
    "rewards",
    "shown",
]
