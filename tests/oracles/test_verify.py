"""Verifiable rewards agree with the libraries they stand on, and nothing a model writes can hang or crash them."""

import time

import numpy as np
import pytest

from ssppo_jax.data import SOURCES
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.protocol import Journal, checked, consult, drop_failed
from ssppo_jax.types import Prompt

SUMS = SOURCES["reasoning_gym"](size=6, settings='{"max_terms": 3}')


def question(answer, name="q"):
    return Prompt(name, ({"role": "user", "content": "?"},), {"answer": answer})


def grade(oracle, gold, *texts):
    verdict = checked(oracle([question(gold)], [list(texts)]))
    return verdict.reward[0].tolist(), {name: part[0].tolist() for name, part in verdict.parts.items()}


# ---- reasoning-gym


def test_the_right_number_is_worth_one_wherever_it_ends_the_response():
    gold = SUMS[0].meta["answer"]
    texts = [gold, f"It is {gold}.", f"{gold} or 99999", "", "no idea"]
    verdict = ORACLES["reasoning_gym"]()([SUMS[0]], [texts])
    np.testing.assert_array_equal(verdict.reward, [[1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(verdict.parts["extracted"], [[1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(verdict.parts["format"], [[1, 0, 0, 0, 0]])


def test_the_format_is_worth_its_weight_and_accuracy_stays_apart():
    gold = SUMS[0].meta["answer"]
    verdict = ORACLES["reasoning_gym"](format_weight=0.25)([SUMS[0]], [[gold, f"It is {gold}", "77777", "x"]])
    np.testing.assert_allclose(verdict.reward, [[1.25, 1.0, 0.25, 0.0]])
    np.testing.assert_array_equal(verdict.parts["accuracy"], [[1, 1, 0, 0]])


def test_partial_credit_counts_only_when_it_is_asked_for():
    """basic_arithmetic gives a wrong number 0.01 or less; decimal_arithmetic and others too."""
    prompt = SOURCES["reasoning_gym"](task="spell_backward", size=1)[0]
    near = prompt.meta["answer"][:-1] + "#"
    exact = ORACLES["reasoning_gym"](answer_style="whole")([prompt], [[near]])
    raw = ORACLES["reasoning_gym"](answer_style="whole", exact=False)([prompt], [[near]])
    assert exact.reward[0, 0] == 0 < raw.reward[0, 0] < 1
    assert raw.parts["accuracy"][0, 0] == 0


def test_an_answer_the_task_cannot_parse_is_wrong_and_counted():
    prompt = SOURCES["reasoning_gym"](task="prime_factorization", size=1)[0]  # it calls int() on every factor
    verdict = checked(ORACLES["reasoning_gym"](answer_style="whole")([prompt], [["two", prompt.meta["answer"]]]))
    np.testing.assert_array_equal(verdict.reward, [[0, 1]])
    np.testing.assert_array_equal(verdict.parts["unreadable"], [[1, 0]])


def test_a_prompt_of_another_source_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match="comes from another source"):
        ORACLES["reasoning_gym"]()([question("4")], [["4"]])
    with pytest.raises(DataError, match=r"prompt 'p' has no answer .*1 of 1"):
        ORACLES["reasoning_gym"]()([Prompt("p", ({"role": "user", "content": "?"},))], [["4"]])


@pytest.mark.parametrize("settings", [{"answer_style": "bxed"}, {"format_weight": -1.0}])
def test_wrong_settings_are_refused_when_the_oracle_is_made(settings):
    for name in ("reasoning_gym", "math_verify"):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            ORACLES[name](**settings)
    with pytest.raises(ConfigError, match="timeout"):
        ORACLES["math_verify"](timeout=0.0)


# ---- math-verify


@pytest.fixture(scope="module")
def mathematician():
    return ORACLES["math_verify"](timeout=3.0)


@pytest.mark.parametrize(
    "gold, right, wrong",
    [
        ("so we add\n#### 1,234", "The answer is 1234.", "#### 1235"),
        (r"\frac{1}{2}", r"\boxed{0.5}", r"\boxed{\frac{1}{3}}"),
        ("2*x + 2", r"\boxed{2(x+1)}", r"\boxed{2x+1}"),
        (r"\{1, 2\}", r"\boxed{\{2, 1\}}", r"\boxed{\{1, 3\}}"),
        ("-7", "we get -7", "we get 7"),
        ("12", "12", "no number"),
    ],
)
def test_answers_are_equal_as_mathematics(mathematician, gold, right, wrong):
    assert grade(mathematician, gold, right, wrong)[0] == [1.0, 0.0]


def test_a_bomb_ends_at_the_deadline_and_the_next_answer_is_judged(mathematician):
    start = time.monotonic()
    reward, parts = grade(mathematician, r"\frac{1}{2}", r"\boxed{9^{9^{9^{9}}}}", "1/2")
    assert time.monotonic() - start < 30
    assert (reward, parts["unreadable"]) == ([0.0, 1.0], [1.0, 0.0])


def test_rubbish_is_wrong_and_no_failure(mathematician):
    reward, _ = grade(mathematician, "5", r"\boxed{\frac{}{}}", r"\boxed{$$}", "\0", "\ud800 5", '{"equal": true}\n')
    assert reward == [0.0, 0.0, 0.0, 1.0, 0.0]


def test_an_empty_gold_answer_fails_the_prompt_and_names_it(mathematician):
    verdict = mathematician([question(" "), question("5")], [["5"], ["5"]])
    assert "gold answer ' '" in verdict.failed[0].reason and verdict.failed[1] is None
    assert np.isnan(verdict.reward[0, 0]) and verdict.reward[1, 0] == 1


# ---- parts of a reward


def test_parts_survive_the_journal_and_the_dropping_of_failures(mathematician, tmp_path):
    prompts = [question("5", "a"), question(" ", "b"), question("6", "c")]
    texts = [["5", "x"], ["5", "5"], ["1", "It is 6"]]
    fresh = consult(mathematician, prompts, texts, journal=Journal(tmp_path / "j"), identity="m")

    def never(*_):
        return mathematician(prompts[1:2], texts[1:2])  # only the failure is asked again

    again = consult(never, prompts, texts, journal=Journal(tmp_path / "j"), identity="m")
    assert fresh.parts.keys() == again.parts.keys() == {"accuracy", "format", "extracted", "unreadable"}
    for name in fresh.parts:
        np.testing.assert_array_equal(fresh.parts[name], again.parts[name])
    kept = drop_failed(again, max_failed_fraction=0.5)
    np.testing.assert_array_equal(kept.verdict.parts["accuracy"], [[1, 0], [0, 1]])


def test_a_part_that_is_not_finite_fails_its_prompt():
    verdict = ORACLES["reasoning_gym"]()(SUMS[:2], [["1", "2"], ["1", "2"]])
    verdict.parts["format"][1, 0] = np.inf
    assert [f and f.reason for f in checked(verdict).failed] == [None, "part format of the reward is not finite"]
