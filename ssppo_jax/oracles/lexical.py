"""Oracles computed from the text, so that their truth is known: sentiment words, and length.

They test the training loop end to end: the true preference of any two responses can be looked up.
They stand for no human preference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np

from ssppo_jax.config import NonNegative, non_negative
from ssppo_jax.errors import UserError
from ssppo_jax.oracles.links import bradley_terry
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.types import Prompt, Verdict


def sentiment(*, temperature: NonNegative = 0.25) -> Oracle:
    """Prefer the response with the higher VADER sentiment: P = sigmoid((s_i - s_j) / temperature).

    s is VADER's compound score in [-1, 1]; an empty response, like any text without sentiment
    words, has s = 0. At the default, neutral against most positive is P = 0.018, and s gaps of 0.25
    are P = 0.73.

    Args:
        temperature: score gap that makes the odds e to 1; 0 is a hard step.
    """
    return _point_oracle(_vader(), temperature)


def sentiment_overconfident(*, temperature: NonNegative = 0.0) -> Oracle:
    """Prefer as `sentiment` does, with the temperature near 0: every gap, however small, is a
    certain win.

    This is the overconfident oracle that S-SPPO's semantic gate is meant to cure: near-equal
    responses get targets as far apart as opposite ones.

    Args:
        temperature: score gap that makes the odds e to 1; 0 is a hard step (ties 0.5).
    """
    return _point_oracle(_vader(), temperature)


def length(*, target: Annotated[int, non_negative] = 40, temperature: NonNegative = 10.0) -> Oracle:
    """Prefer the response whose number of words is nearer to `target`: s = -|words - target|.

    Words are what `str.split()` finds; an empty response has none.

    Args:
        target: the preferred number of words.
        temperature: difference in distance, in words, that makes the odds e to 1; 0 is a hard step.
    """
    return _point_oracle(lambda text: -float(abs(len(text.split()) - target)), temperature)


def _point_oracle(score: Callable[[str], float], temperature: float) -> Oracle:
    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        scores = np.array([[score(text) for text in group] for group in responses])  # [B,K]
        return Verdict(bradley_terry(scores, temperature=temperature), None, (None,) * len(prompts))

    return Oracle(ask)


def _vader() -> Callable[[str], float]:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise UserError(
            "the sentiment oracles need VADER: pip install vaderSentiment==3.3.2"
        ) from error
    analyzer = SentimentIntensityAnalyzer()
    return lambda text: analyzer.polarity_scores(text)["compound"]


ORACLES = {
    "sentiment": sentiment,
    "sentiment_overconfident": sentiment_overconfident,
    "length": length,
}
