"""reasoning-gym's questions as prompts: scored by their own task, the same in every process, refused when misspelt."""

import json
import logging

import pytest

from ssppo_jax.data.tasks import reasoning_gym, scorer
from ssppo_jax.errors import ConfigError

TASKS = (
    "chain_sum",
    "basic_arithmetic",
    "gsm_symbolic",
    "gcd",
    "lcm",
    "prime_factorization",
    "simple_equations",
    "number_sorting",
    "letter_counting",
    "spell_backward",
    "calendar_arithmetic",
    "countdown",
    "leg_counting",
    "propositional_logic",
    "fraction_simplification",
    "base_conversion",
)


@pytest.mark.parametrize("task", TASKS)
def test_the_gold_answer_gets_full_marks_and_nonsense_does_not(task):
    for prompt in reasoning_gym(task=task, size=3):
        json.dumps(prompt.meta)
        score = scorer(prompt)
        if prompt.meta["answer"] != "None":  # countdown and logic tasks accept any answer that works
            assert score(prompt.meta["answer"]) == 1.0
        assert (_quiet(score)) < 1.0


def _quiet(score):
    try:
        return score("certainly not this")
    except Exception:  # some tasks parse as if the answer had their form; the oracle counts such answers
        return 0.0


def test_questions_depend_on_the_seed_and_carry_the_instruction():
    one, again, other = (reasoning_gym(size=5, task_seed=s, instruction="Number only.") for s in (1, 1, 2))
    assert one == again
    assert {p.text for p in one} != {p.text for p in other}
    assert {p.id for p in one}.isdisjoint(p.id for p in other)
    assert all(p.text.endswith("=\nNumber only.") for p in one)


def test_several_tasks_are_mixed_in_equal_parts_each_with_its_own_options():
    prompts = reasoning_gym(task="chain_sum,gcd", size=10, settings='{"chain_sum": {"min_terms": 6}}')
    assert [p.meta["reasoning_gym"]["task"] for p in prompts] == ["chain_sum"] * 5 + ["gcd"] * 5
    assert all(p.text.count(" + ") + p.text.count(" - ") >= 5 for p in prompts[:5])


def test_repeated_questions_are_left_out_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        prompts = reasoning_gym(size=300, settings='{"max_terms": 2, "max_digits": 1}')
    assert len({p.text for p in prompts}) == len(prompts) < 300
    assert f"{300 - len(prompts)} of 300 questions repeat" in caplog.text


@pytest.mark.parametrize(
    "given, message",
    [
        ({"task": "chan_sum"}, "no task 'chan_sum'; did you mean 'chain_sum'"),
        ({"settings": '{"max_term": 3}'}, r"takes no 'max_term'; it takes: .*max_terms"),
        ({"settings": '{"min_terms": 5, "max_terms": 2}'}, "max_terms must be >= min_terms"),
        ({"settings": "max_terms=3"}, "is not JSON"),
        ({"settings": "[3]"}, "must be a JSON object"),
        ({"task": "gcd,chain_sum", "settings": '{"max_terms": 3}'}, "with several tasks each gets its own object"),
        ({"task": ""}, "makes no question"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(given, message):
    with pytest.raises(ConfigError, match=message):
        reasoning_gym(**given)
