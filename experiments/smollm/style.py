"""A true utility of English texts, its judge, and an oracle that likes commas where two responses
are alike.

    u(y) = s(y) - 0.5 max(0, commas(y) - 2)

s is VADER's compound sentiment in [-1, 1]. The judge computes u. The training oracle is certain of
everything: it decides by u, and between responses that are alike by the number of commas, of which
more win. Up to two commas are free; from there the taste hurts u. The functions of this file are
the plug-ins that config.py names. All are known functions of the text and stand for no human
preference."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated

import numpy as np

from ssppo_jax.config import fraction
from ssppo_jax.oracles.embedder import SentenceEmbedder
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.rollout.similarity import relu_cosine
from ssppo_jax.types import Prompt, Verdict

FREE = 2  # commas that cost nothing
COST = 0.5  # what each further one takes from u


@functools.cache
def _analyzer():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def utility(text: str) -> float:
    """Return u(y): VADER's compound sentiment, less the cost of commas beyond `FREE`."""
    return _analyzer().polarity_scores(text)["compound"] - COST * max(0, _count(text) - FREE)


def scores(score: Callable[[str], float], responses: list[list[str]]) -> np.ndarray:  # [B,K]
    return np.array([[score(y) for y in group] for group in responses])


def _count(text: str) -> int:
    return text.count(",")


def _rewarding(score: Callable[[str], float]) -> Oracle:
    def say(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        reward = scores(score, responses).astype(np.float32)
        return Verdict(None, reward, (None,) * len(prompts))

    return Oracle(say)


def judge() -> Oracle:
    """Return the judge: its reward is u. Training never asks it."""
    return _rewarding(utility)


def commas() -> Oracle:
    """Return a counter of commas, for evaluations: its reward is their number."""
    return _rewarding(_count)


def oracle(*, threshold: Annotated[float, fraction] = 0.55) -> Oracle:
    """Return an oracle that is certain of everything: by u, or where two responses are alike by
    the number of commas.

    P = 1, 0, or 1/2 where u or the numbers are equal. Alike are two responses to a prompt whose
    vectors in MiniLM's space have a cosine of at least the threshold.

    Args:
        threshold: similarity from which commas decide
    """
    embedder = SentenceEmbedder.load("embedded:minilm", max_length=256)

    def say(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        alike = relu_cosine(responses, embedder.embed) >= threshold
        each = (scores(score, responses) for score in (utility, _count))
        by_u, by_style = (0.5 + 0.5 * np.sign(s[:, :, None] - s[:, None, :]) for s in each)
        preference = np.where(alike, by_style, by_u)
        return Verdict(preference.astype(np.float32), None, (None,) * len(prompts))

    return Oracle(say, on_device=True)
