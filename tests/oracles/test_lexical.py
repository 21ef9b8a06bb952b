import inspect
from typing import get_type_hints

import numpy as np
import pytest

from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.protocol import consult
from ssppo_jax.types import Prompt

PROMPT = Prompt("p", ({"role": "user", "content": "How was it?"},))
GOOD, FLAT, BAD = "I love this wonderful day!", "The table has four legs.", "Horrible, I hate it."


def judge(oracle, *texts):
    return consult(oracle, [PROMPT], [list(texts)]).preference[0]


def test_sentiment_prefers_the_kinder_text_by_the_stated_link():
    p = judge(ORACLES["sentiment"](temperature=0.25), "great!", FLAT)  # VADER: 0.6588 and 0
    assert p[0, 1] == pytest.approx(1 / (1 + np.exp(-0.6588 / 0.25)), rel=1e-5)


def test_sentiment_ranks_good_over_flat_over_bad():
    p = judge(ORACLES["sentiment"](), GOOD, FLAT, BAD)
    assert p[0, 1] > 0.9 and p[1, 2] > 0.9 and p[0, 2] > p[0, 1]


def test_an_empty_response_counts_as_neutral():
    p = judge(ORACLES["sentiment"](), "", FLAT, GOOD, " \n")
    assert p[0, 1] == 0.5 and p[0, 3] == 0.5 and p[2, 0] > 0.9


def test_the_overconfident_oracle_knows_the_same_truth_and_no_doubt():
    # VADER: 0, 0.42, 0.44, ...
    texts = ("The table has legs.", "The day is nice.", "The day is good.", GOOD, BAD)
    calm = judge(ORACLES["sentiment"](), *texts)
    sure = judge(ORACLES["sentiment_overconfident"](), *texts)
    assert set(np.unique(sure)) == {0.0, 0.5, 1.0}
    np.testing.assert_array_equal(np.sign(calm - 0.5), np.sign(sure - 0.5))
    # near-equal texts: a certain win against a near tie
    assert sure[2, 1] == 1 and 0.5 < calm[2, 1] < 0.6


def test_length_prefers_what_is_nearer_to_the_target():
    p = judge(ORACLES["length"](target=3, temperature=2.0), "a b c", "a  b\n", "a b c d e", "")
    assert p[0, 1] == pytest.approx(1 / (1 + np.exp(-0.5)), rel=1e-5)  # distances 0 and 1
    assert p[1, 2] == pytest.approx(1 / (1 + np.exp(-0.5)), rel=1e-5)  # 1 and 2
    # an empty response has no words
    assert p[0, 3] == pytest.approx(1 / (1 + np.exp(-1.5)), rel=1e-5)


def test_hard_length_ties_at_equal_distance():
    p = judge(ORACLES["length"](target=2, temperature=0.0), "a", "a b c", "a b")
    assert p[0, 1] == 0.5 and p[2, 0] == 1 and p[0, 2] == 0


@pytest.mark.parametrize("name", ["sentiment", "sentiment_overconfident", "length"])
def test_an_oracles_keywords_are_its_config(name):
    factory = ORACLES[name]
    types, described = get_type_hints(factory), inspect.getdoc(factory).partition("Args:")[2]
    for parameter in inspect.signature(factory).parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert type(parameter.default) is types[parameter.name]
        assert f"{parameter.name}: " in described
