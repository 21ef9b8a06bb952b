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


def test_the_second_look_is_wider_and_the_new_seeds_stand_alone(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDY))
    summarise = load_module(str(STUDY / "summarise.py"))
    told = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.4, 5: 0.5, 6: 0.9, 7: 0.7}  # S-SPPO's u above SPPO's
    rows = [
        {"turn": 1, "seed": seed, "label": label, "u": u}
        for seed, less in told.items()
        for label, u in (("start", 0.0), ("SPPO", 0.2), ("S-SPPO", 0.2 + less))
    ]
    line = summarise.of_looks(rows).splitlines()[2].split("|")
    first, new, both = line[2:5]
    assert "0.300 [0.104, 0.496]" in first  # t of 4 degrees: 2.776 * 0.1581 / 5**0.5
    assert "0.800 [-0.471, 2.071]" in new  # 12.706 * 0.1414 / 2**0.5
    x = np.array(list(told.values()))
    half = 2.8443 * x.std(ddof=1) / 7**0.5  # t of 6 degrees at 98.53%
    low, high = x.mean() - half, x.mean() + half
    assert f"{x.mean():.3f} [{low:.3f}, {high:.3f}]" in both
