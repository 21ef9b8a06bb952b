"""Sums with their working written out, and the reward of an answer.

A prompt is one of reasoning-gym's (`basic_arithmetic` with five terms and `+` alone):

    Calculate 37 + 58 + 46 + 19 + 82.

A response adds one term after the other, ones before tens, and ends with the answer:

    37+58:7+8=15,3+5+1=9,95;95+46:5+6=11,9+4+1=14,141; ... ####242

The reward is the package's: 1 if reasoning-gym's own check takes what follows #### for the answer,
else 0. The functions of this file are the plug-ins that config.py names."""

from __future__ import annotations

import functools

import numpy as np

from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.protocol import Oracle

TASK = "basic_arithmetic"
TERMS = 5
SETTINGS = (
    f'{{"min_terms": {TERMS}, "max_terms": {TERMS}, "min_digits": 2, "max_digits": 2,'
    ' "operators": ["+"], "allow_parentheses": false}'
)


def worked(terms: list[int], rng: np.random.Generator, mistakes: float = 0.0) -> str:
    """Write the working of a sum.

    In a share `mistakes` of the additions the tens are wrong by one, and what follows goes on from
    there.
    """
    total, steps = terms[0], []
    for term in terms[1:]:
        ones = total % 10 + term % 10
        carried = "+1" if ones > 9 else ""
        tens = total // 10 + term // 10 + ones // 10
        if rng.random() < mistakes:
            tens = max(0, tens + int(rng.choice((-1, 1))))
        reached = 10 * tens + ones % 10
        steps.append(
            f"{total}+{term}:{total % 10}+{term % 10}={ones},"
            f"{total // 10}+{term // 10}{carried}={tens},{reached};"
        )
        total = reached
    return "".join(steps) + f"####{total}"


def terms_of(question: str) -> list[int]:
    """Return the terms of a question, "Calculate 37 + 58."."""
    return [int(term) for term in question.removeprefix("Calculate ").rstrip(".").split(" + ")]


@functools.cache  # its helper process loads a library for seconds, and a run takes few
def check() -> Oracle:
    """Return the package's oracle `reasoning_gym`, one for all runs of a process."""
    return ORACLES["reasoning_gym"](answer_style="hash")
