"""Reward functions in TRL's signature, and environments as the verifiers library has them."""

import json

import numpy as np
import pytest

from ssppo_jax.data import SOURCES
from ssppo_jax.errors import ConfigError, DataError, UserError
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.protocol import checked
from ssppo_jax.types import Prompt

REWARDS = '''
import re

def length(completions, **kwargs):
    return [float(len(text)) for text in completions]

def correct(prompts, completions, answer):
    assert len(prompts) == len(completions) == len(answer)
    return [1.0 if a and a in text else 0.0 for text, a in zip(completions, answer)]

def only_math(completions, task, **kwargs):
    return [float(len(c)) if t == "math" else None for c, t in zip(completions, task)]

def turns(prompts, completions, **kwargs):
    """As the reward functions of TRL's guide read conversational data."""
    texts = [completion[0]["content"] for completion in completions]
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    return [1.0 if re.match(r"^<think>.*?</think>", text) else 0.0 for text in texts]

async def later(completions, **kwargs):
    return [0.5 for _ in completions]

def wants_ids(completions, completion_ids):
    return [len(ids) for ids in completion_ids]

def wants_column(completions, ground_truth):
    return [1.0 for _ in completions]

def fragile(completions, **kwargs):
    return [completions[0].split()[0] == "yes" for _ in completions]

def one_number(completions, **kwargs):
    return 1.0

def too_few(completions, **kwargs):
    return [1.0]

def words(completions, **kwargs):
    return ["good" for _ in completions]

def endless(completions, **kwargs):
    return [float("inf") for _ in completions]
'''


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(REWARDS)


def asks(name, text="What?", **meta):
    return Prompt(name, ({"role": "user", "content": text},), meta)


PROMPTS = [asks("a", answer="4", task="math"), asks("b", answer="5", task="chat")]
TEXTS = [["It is 4.", "5"], ["5", "Hello"]]


def judge(function, prompts=PROMPTS, texts=TEXTS, **settings):
    oracle = ORACLES["python"](function=function, **settings)
    oracle.check(prompts)
    return checked(oracle.ask(prompts, texts), (len(prompts), len(texts[0])))


def test_a_function_gets_texts_and_columns_one_for_each_completion():
    assert judge("mine.py:length").reward.tolist() == [[8, 1], [1, 5]]
    assert judge("mine.py:correct").reward.tolist() == [[1, 0], [1, 0]]
    assert judge("mine.py:later").reward.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_conversational_functions_get_lists_of_turns():
    texts = [["<think>so</think>4", "4"], ["5", "<think></think>"]]
    found = judge("mine.py:turns", texts=texts, conversational=True)
    assert found.reward.tolist() == [[1, 0], [0, 1]]


def test_several_functions_are_weighted_and_left_out_where_they_give_none():
    """TRL's sum: nansum over functions of weight times reward."""
    found = judge("mine.py:correct, mine.py:only_math", weights=(1.0, 0.5))
    given = np.array([[[1, 0], [1, 0]], [[8, 1], [np.nan, np.nan]]])
    wanted = np.nansum(np.array([1.0, 0.5])[:, None, None] * given, axis=0)
    np.testing.assert_array_equal(found.reward, wanted)
    assert found.parts["correct"].tolist() == [[1, 0], [1, 0]]
    assert found.parts["only_math"].tolist() == [[8, 1], [0, 0]]


def test_a_prompt_to_which_no_function_applies_fails():
    found = judge("mine.py:only_math")
    assert found.failed[0] is None and found.failed[1].reason == "no reward function applies"
    assert found.reward[0].tolist() == [8, 1] and np.isnan(found.reward[1]).all()


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("", "name a function: --config.oracle.function=path/to/file.py:FUNCTION"),
        ("length", "'length': write it as path/to/file.py:NAME"),
        ("mine.py:lenght", "mine.py defines no 'lenght'; did you mean 'length'?"),
        ("mine.py:wants_ids", "asks for 'completion_ids', and an oracle here does not see it"),
        (
            "mine.py:wants_column",
            "asks for 'ground_truth', and no row has such a field; it may ask for: prompts,"
            " completions, answer, task",
        ),
        ("mine.py:fragile", "mine.py:30: IndexError: list index out of range"),
        ("mine.py:one_number", "returned a float; it must return a list of 2 numbers"),
        ("mine.py:too_few", "returned a list of 1; it must return a list of 2 numbers"),
        ("mine.py:words", "returned 'good' in its list; a reward is a number, or None"),
        ("mine.py:endless", "returned inf; a reward is a finite number, or None"),
    ],
)
def test_a_mistake_is_told_before_anything_is_sampled(function, told):
    with pytest.raises((ConfigError, UserError)) as caught:
        judge(function)
    assert told in str(caught.value)
    with pytest.raises(ConfigError, match="for 2 functions; give one for each"):
        ORACLES["python"](function="mine.py:length,mine.py:correct", weights=(1.0, 2.0, 3.0))


# ---- environments

ENVIRONMENT = """
class Rubric:
    def __init__(self, funcs, weights=None):
        self.funcs, self.weights = funcs, weights or [1.0] * len(funcs)

class Environment:
    max_turns, system_prompt = {max_turns}, "Be brief."
    def __init__(self, dataset, rubric):
        self.dataset, self.rubric = dataset, rubric

async def correct(completion, answer):
    return 1.0 if answer in completion[-1]["content"] else 0.0

def short(prompt, completion, state, **kwargs):
    assert state["answer"] and prompt[-1]["role"] == "user"
    return -len(completion[-1]["content"])

def group(completions):
    return [0.0 for _ in completions]

ROWS = [{{"question": "2 + 2?", "answer": "4"}},
        {{"prompt": [{{"role": "user", "content": "3 * 5?"}}], "answer": "15"}}]

def load_environment():
    return Environment(ROWS, Rubric([correct, short], [1.0, 0.1]))

made = Environment(ROWS, Rubric([group]))
"""


def test_an_environment_gives_prompts_and_their_check(tmp_path):
    (tmp_path / "env.py").write_text(ENVIRONMENT.format(max_turns=1))
    prompts = SOURCES["environment"](environment="env.py:load_environment")
    assert [m["content"] for m in prompts[0].messages] == ["Be brief.", "2 + 2?"]
    assert [p.meta for p in prompts] == [{"answer": "4"}, {"answer": "15"}]
    oracle = ORACLES["environment"](environment="env.py:load_environment")
    oracle.check(prompts)
    found = checked(oracle.ask(prompts, [["4", "four"], ["16", "15"]]), (2, 2))
    np.testing.assert_allclose(found.reward, [[0.9, -0.4], [-0.2, 0.8]], rtol=1e-6)
    assert found.parts["correct"].tolist() == [[1, 0], [0, 1]]
    json.dumps([p.meta for p in prompts])  # as the journal writes them


PLAIN = """
import dataclasses
import functools

def equal(completion, answer, factor):
    return factor * float(completion[-1]["content"] == answer)

@dataclasses.dataclass
class Rubric:
    funcs: list

@dataclasses.dataclass
class Environment:
    dataset: list
    rubric: Rubric

ROWS = [{"question": "2 + 2?", "answer": "4"}]
made = Environment(ROWS, Rubric([functools.partial(equal, factor=2)]))
"""


def test_an_environment_may_be_a_dataclass_and_its_reward_a_partial(tmp_path):
    (tmp_path / "env.py").write_text(PLAIN)
    prompts = SOURCES["environment"](environment="env.py:made")
    oracle = ORACLES["environment"](environment="env.py:made")
    oracle.check(prompts)
    assert oracle.ask(prompts, [["4", "5"]]).reward.tolist() == [[2.0, 0.0]]


def test_what_an_environment_cannot_have_is_told(tmp_path):
    (tmp_path / "env.py").write_text(ENVIRONMENT.format(max_turns=10))
    with pytest.raises(ConfigError, match=r"takes several turns .max_turns=10"):
        SOURCES["environment"](environment="env.py:load_environment")
    (tmp_path / "env.py").write_text(ENVIRONMENT.format(max_turns=1))
    prompts = SOURCES["environment"](environment="env.py:made")
    with pytest.raises(ConfigError, match="reward function group asks for 'completions'"):
        ORACLES["environment"](environment="env.py:made").check(prompts)
    (tmp_path / "env.py").write_text("class Bare:\n    rubric = 1\n\nmade = Bare()\n")
    with pytest.raises(ConfigError, match="the Bare has no dataset; an environment has both"):
        SOURCES["environment"](environment="env.py:made")
    (tmp_path / "env.py").write_text("def made():\n    return {}['nothing']\n")
    with pytest.raises(UserError, match=r"env.py:2: KeyError: 'nothing' \(in env.py:made, making"):
        SOURCES["environment"](environment="env.py:made")
    with pytest.raises(ConfigError, match=r"name the environment for both: --config.data.source"):
        SOURCES["environment"]()
    text = ENVIRONMENT.format(max_turns=1).replace('"2 + 2?"', "5")
    (tmp_path / "env.py").write_text(text)
    with pytest.raises(DataError, match=r"env.py:load_environment:1: .*must be a string, not int"):
        SOURCES["environment"](environment="env.py:load_environment")
    bad = "class Lazy:\n    rubric = 1\n    def get_dataset(self):\n        return open('rows')\n\n"
    (tmp_path / "env.py").write_text(bad + "made = Lazy()\n")
    with pytest.raises(UserError, match=r"env.py:4: FileNotFoundError.*made, reading its data set"):
        SOURCES["environment"](environment="env.py:made")
    (tmp_path / "env.py").write_text(
        "class Bare:\n    rubric, dataset = 1, ['x']\n\nmade = Bare()\n"
    )
    with pytest.raises(UserError, match=r"ValueError: .*env.py:made, reading its data set"):
        SOURCES["environment"](environment="env.py:made")
