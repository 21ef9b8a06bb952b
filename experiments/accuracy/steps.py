"""Sums whose working is careful or hasty, term by term.

A prompt is one of reasoning-gym's (`basic_arithmetic` with eight terms of a digit and `+` alone):

    Calculate 7 + 8 + 6 + 9 + 2 + 1 + 5 + 4.

A response adds one term after the other. A careful addition writes ones before tens. A hasty one
writes the result alone, and is wrong as often as in the model's demonstrations:

    7+8:7+8=15,0+1=1,15;15+6~31;31+9:1+9=10,3+1=4,40; ... ####52

The reward is the package's: 1 if reasoning-gym's own check takes what follows #### for the answer,
else 0. Task, questions and reward are those of ../stability/sums.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ssppo_jax.config import load_module

SUMS = load_module(str(Path(__file__).parents[1] / "stability/sums.py"))
TASK, terms_of = SUMS.TASK, SUMS.terms_of
TERMS = 8
SETTINGS = (
    f'{{"min_terms": {TERMS}, "max_terms": {TERMS}, "min_digits": 1, "max_digits": 1,'
    ' "operators": ["+"], "allow_parentheses": false}'
)


def worked(terms: list[int], rng: np.random.Generator, hasty: float, wrong: float) -> str:
    """Write the working of a sum.

    A share `hasty` of the additions has no working, and a share `wrong` of these has tens that are
    wrong by one. What follows goes on from there.
    """
    total, steps = terms[0], []
    for term in terms[1:]:
        ones = total % 10 + term
        reached = total + term
        if rng.random() < hasty:
            if rng.random() < wrong:
                reached = max(reached % 10, reached + 10 * int(rng.choice((-1, 1))))
            steps.append(f"{total}+{term}~{reached};")
        else:
            carried = ones // 10
            tens = f"{total // 10}+{carried}={total // 10 + carried}"
            steps.append(f"{total}+{term}:{total % 10}+{term}={ones},{tens},{reached};")
        total = reached
    return "".join(steps) + f"####{total}"
