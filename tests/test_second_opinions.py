"""Other oracles, opponents and reference outputs: what is logged under which name, without a
model."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from small_runs import configure

from ssppo_jax import schema
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.evaluate import (
    compare,
    compare_all,
    evaluation_data,
    read_references,
)
from ssppo_jax.files import BYTE_ORDER_MARK
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.links import bradley_terry
from ssppo_jax.oracles.named import build_named
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.runtime import evaluation_params, longest_response
from ssppo_jax.schema.between import evaluated
from ssppo_jax.training.evaluation import Evaluated
from ssppo_jax.training.position import Position
from ssppo_jax.training.selection import Selection
from ssppo_jax.training.train import Trainer
from ssppo_jax.types import Prompt, Verdict


def encoded(*texts):
    prompts = [Prompt(f"p{i}", ({"role": "user", "content": t},)) for i, t in enumerate(texts)]
    return [EncodedPrompt(p, np.ones(1, np.int32), np.uint32(i)) for i, p in enumerate(prompts)]


def longer(prompts, responses):
    score = np.array([[len(text) for text in group] for group in responses], np.float64)
    return Verdict(bradley_terry(score, temperature=0.0), None, (None,) * len(prompts))


def test_every_oracle_meets_every_opponent_on_the_same_responses():
    asked = encoded("Describe the ocean waves", "Name a green vegetable")
    own = [["the ocean has waves"], ["cabbage is a vegetable"]]
    opponents = {"": [["ocean", "x"], ["sorry", "y"]], "previous": [["a" * 50], ["a" * 50]]}
    oracles = {"": Oracle(longer)} | build_named("keywords", ORACLES)
    found = compare_all(configure(), oracles, asked, own, opponents)
    values = found.values()
    assert {name: values[name] for name in values if name.endswith("/win_rate")} == {
        "previous/win_rate": 0,
        "keywords/win_rate": 1,
        "keywords/previous/win_rate": 1,
    }
    assert values["win_rate"] == 1
    np.testing.assert_allclose(values["keywords/reward"], (1 + 1 / 3) / 2)
    assert "keywords/previous/reward" not in values  # it is the policy's own
    result = found.result()
    assert result["win_rate"] == 1 and result["oracles"]["keywords"]["reward_start"] == 0.25
    assert "by keywords: win rate 1.000" in str(found)


def test_an_opponent_with_fewer_responses_is_compared_with_all_its_own():
    own = [["aaa", "a"]]
    assert compare(configure(), Oracle(longer), encoded("p"), own, [["aa"]]).win_rate.mean == 0.5
    assert compare(configure(), Oracle(longer), encoded("p"), own, [["", "", "aaaa"]])[0].mean == 1


def test_who_always_wins_does_so_at_equal_length_too():
    """Both sides have their longer and shorter responses; the verdict reads another mark."""

    def marked(prompts, responses):
        score = np.array([["!" in text for text in group] for group in responses], np.float64)
        return Verdict(bradley_terry(score, temperature=0.25), None, (None,) * len(prompts))

    own = [["!" + "a" * n, "!" + "a" * (n + 3)] for n in range(8)]
    other = [["b" * (n + 2), "b" * n] for n in range(8)]
    found = compare(configure(), Oracle(marked), encoded(*"abcdefgh"), own, other)
    assert found.win_rate.mean > 0.9 and found.length_controlled.mean > 0.9


# ---- which evaluated policy is the best ----------------------------------------------------------


def selections(values, **settings):
    """Return the iteration that is best after each evaluation, and whether the run ended there."""
    config = configure(train__select_by="eval/win_rate", train__iterations=9, **settings)
    selection, saved = Selection(config), []
    run = SimpleNamespace(
        config=config, selection=selection, _save=lambda state, at, _: saved.append(at)
    )
    for n, value in enumerate(values, 1):
        evaluated = Evaluated({"win_rate": value}, {"win_rate": value})
        end = Trainer._select(run, SimpleNamespace(step=10 * n), evaluated, Position(n), 0)
        yield selection.best.iteration, selection.best.step, end


def test_the_highest_value_is_the_best_and_the_first_of_equals():
    assert [best for best, *_ in selections([0.5, 0.6, 0.4, 0.6, 0.7])] == [1, 2, 2, 2, 5]
    assert [step for _, step, _ in selections([0.5, 0.4])] == [10, 10]


def test_a_run_ends_after_so_many_evaluations_without_a_better_one():
    ends = [end for *_, end in selections([0.5, 0.4, 0.6, 0.5, 0.6], train__patience=2)]
    assert ends == [False, False, False, False, True]


# ---- settings of their own


def test_evaluations_sample_with_their_own_settings_and_else_with_those_of_training():
    same = evaluation_params(configure(sampling__top_p=0.8))
    assert (same.top_p, same.max_new_tokens, same.temperature) == (0.8, 6, 1.0)
    own = configure(
        eval__top_p=0.5,
        eval__max_new_tokens=9,
        eval__temperature=0.2,
        eval__system_prompt="Hey",
    )
    found = evaluation_params(own)
    assert (found.top_p, found.max_new_tokens, found.temperature) == (0.5, 9, 0.2)
    assert longest_response(own) == 9 and own.sampling.max_new_tokens == 6
    assert evaluation_data(own)["system_prompt"] == "Hey"
    assert evaluation_data(configure(data__system_prompt="Hi"))["system_prompt"] == "Hi"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"train__carry": "best"}, "train.carry=best needs to know the best policy"),
        ({"train__patience": 2}, "train.patience=2 needs to know the best policy"),
        ({"train__select_by": "eval/keyword/win_rate"}, "no evaluation logs that; it may be eval/"),
        ({"train__select_by": "win_rate"}, "no evaluation logs that"),
        ({"train__select_by": "eval/winrate"}, "no evaluation logs that"),
        ({"train__select_by": "eval/previous/reward"}, "no evaluation logs that"),
        ({"train__select_by": "eval/win_rate", "eval__every": 0}, "with eval.every=0 there is one"),
        ({"eval__oracles": "keyword"}, "did you mean 'keywords'"),
    ],
)
def test_a_selection_that_cannot_be_made_is_named_before_anything_runs(given, named):
    with pytest.raises(ConfigError) as error:
        schema.check(configure(**given), 8)
    assert named in str(error.value)


def test_every_logged_rate_can_select():
    more = {"eval__oracles": "keywords", "eval__previous": "true"}
    for name in ("win_rate", "keywords/previous/length_controlled_win_rate", "keywords/reward"):
        for phase in ("eval", "evaluate"):  # the second as it stands in metrics.jsonl
            schema.check(configure(train__select_by=f"{phase}/{name}", **more), 8)
            assert evaluated(f"{phase}/{name}") == name


# ---- reference outputs


def test_references_are_found_by_id_text_or_instruction(tmp_path):
    rows = [
        {"prompt_id": "p1", "response": "by id"},
        {"prompt": "Hi", "output": "by text"},
        {"prompt": "Hi", "output": "a second one"},
    ]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_references(str(lines), encoded("Hi", "Ho")) == [["by text"], ["by id"]]
    whole = tmp_path / "outputs.json"
    whole.write_text(json.dumps([{"instruction": "Hi", "output": "as AlpacaEval has it"}]))
    assert read_references(str(whole), encoded("Hi")) == [["as AlpacaEval has it"]]
    lines.write_text("\n".join(map(json.dumps, rows)))  # as an editor may save it
    assert read_references(str(lines), encoded("Hi", "Ho")) == [["by text"], ["by id"]]
    whole.write_bytes(BYTE_ORDER_MARK + whole.read_bytes())
    assert read_references(str(whole), encoded("Hi")) == [["as AlpacaEval has it"]]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (
            '{"prompt": "Hi", "output": "x"}\n',
            "no output for 1 of 2 held-out prompts",
        ),
        ('{"prompt": "Hi"}\n', "row 1 must have one of"),
        ("[3]", "row 1 must have one of"),
        ('{"prompt": "Hi", "output": "x"}\n{"prompt": Ho}\n', "row 2: not JSON"),
        ("[", "not JSON"),
        (None, "there is no such file"),
    ],
)
def test_unusable_references_are_named(tmp_path, content, named):
    path = tmp_path / "outputs"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError) as error:
        read_references(str(path), encoded("Hi", "Ho"))
    assert named in str(error.value)
