"""A preference that goes round in a circle, on the language of `experiments/overconfidence`.

Red beats green, green beats blue, blue beats red: no colour is best, so no reward model fits. A
response with none of the three colours, or with two, loses to each of them. Nothing else of a
response counts. The functions of this file are the plug-ins that config.py names."""

from __future__ import annotations

import numpy as np

from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.types import Prompt, Verdict

COLOURS = ("rosy red", "mossy green", "inky blue")
NEITHER = len(COLOURS)
# P(row is preferred to column); the last row and column stand for no colour.
PREFERENCE = np.array(
    [
        [0.5, 1.0, 0.25, 1.0],
        [0.0, 0.5, 0.75, 1.0],
        [0.75, 0.25, 0.5, 1.0],
        [0.0, 0.0, 0.0, 0.5],
    ]
)
# The margins of the two others over each other weigh a colour: 0.25, 0.25, 0.5 of their sum.
EQUILIBRIUM = np.array([0.25, 0.25, 0.5, 0.0])


def kind(response: str) -> int:
    """Return the place in `COLOURS` of the one colour that a response names, else `NEITHER`."""
    named = [i for i, colour in enumerate(COLOURS) if colour in response]
    return named[0] if len(named) == 1 else NEITHER


def oracle() -> Oracle:
    """Return the oracle of the circle: P depends on the two colours alone."""

    def say(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        kinds = np.array([[kind(text) for text in group] for group in responses])
        preference = PREFERENCE[kinds[:, :, None], kinds[:, None, :]].astype(np.float32)
        return Verdict(preference, None, (None,) * len(prompts))

    return Oracle(say)
