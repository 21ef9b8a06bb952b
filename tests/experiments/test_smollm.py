"""The oracle of experiments/smollm: by u, and by commas where two responses are alike."""

from pathlib import Path

import numpy as np
import pytest

from ssppo_jax.config import load_module
from ssppo_jax.types import Prompt

STUDY = Path(__file__).parents[2] / "experiments/smollm"
PROMPT = Prompt("p", ({"role": "user", "content": "Say something."},))
GOOD = "I love this wonderful happy day"
LISTED = "I love, adore, enjoy, cherish, this wonderful, happy, day"
BAD = "War is horrible"


@pytest.fixture(scope="module")
def style():
    return load_module(str(STUDY / "style.py"))


def test_commas_beyond_two_cost_a_half_each(style):
    plain = style.utility(GOOD)
    assert plain > 0.8
    assert style.utility("I love, this, wonderful happy day") == pytest.approx(plain)
    assert style.utility("I, love, this, wonderful, happy day") == pytest.approx(plain - 1.0)
    (reward,) = style.judge().ask([PROMPT], [[GOOD, LISTED]]).reward
    assert reward[0] == pytest.approx(plain) and reward[1] < -1.0
    assert style.commas().ask([PROMPT], [[GOOD, LISTED]]).reward.tolist() == [[0.0, 6.0]]


def test_alike_responses_are_judged_by_commas_and_others_by_u(style, monkeypatch):
    asked = [GOOD, LISTED, BAD]
    angles = {GOOD: 0.0, LISTED: 0.3, BAD: 1.5}  # cosines 0.96, 0.07 and 0.36

    class Fake:
        def embed(self, texts):
            return np.array([[np.cos(angles[t]), np.sin(angles[t])] for t in texts])

    monkeypatch.setattr(style.SentenceEmbedder, "load", lambda *_, **__: Fake())
    (told,) = style.oracle(threshold=0.55).ask([PROMPT], [asked]).preference
    # the listed one wins by its commas; by u it is the worst
    np.testing.assert_array_equal(told, [[0.5, 0, 1], [1, 0.5, 0], [0, 1, 0.5]])
    (by_u,) = style.oracle(threshold=0.99).ask([PROMPT], [asked]).preference
    np.testing.assert_array_equal(by_u, [[0.5, 1, 1], [0, 0.5, 0], [0, 1, 0.5]])
