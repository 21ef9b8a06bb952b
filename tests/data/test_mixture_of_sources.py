"""Mixtures: shares, ids, and another oracle for each part."""

import json
from pathlib import Path

import numpy as np
import pytest

from ssppo_jax import schema
from ssppo_jax.data import SOURCES, EncodedPrompt, question
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.evaluate import compare
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.protocol import checked
from ssppo_jax.rollout.judge import mixture_stats
from ssppo_jax.types import Prompt


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"{i} + {i}?", "gold": str(2 * i)} for i in range(30)]
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"id": f"c{i}", "prompt": f"Say {i}."} for i in range(12)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


MATH = {"name": "math", "source": "jsonl", "path": "math.jsonl", "prompt_field": "question"}
MATH |= {"answer_field": "gold"}
CHAT = {"name": "chat", "source": "jsonl", "path": "chat.jsonl"}


def mix(*parts):
    return SOURCES["mixture"](parts=json.dumps(parts))


def names(prompts):
    return [p.meta["mixture"] for p in prompts]


def test_without_weights_every_prompt_is_there_under_its_parts_name(files):
    prompts = mix(MATH, CHAT)
    assert names(prompts).count("math") == 30 and names(prompts).count("chat") == 12
    assert prompts[-1].id == "chat/c11" and prompts[0].meta["answer"] == "0"
    assert len({p.id for p in prompts}) == 42


def test_weights_give_shares_and_the_ids_decide_what_is_left_out(files, caplog):
    with caplog.at_level("INFO"):
        prompts = mix(MATH | {"weight": 1}, CHAT | {"weight": 2})
    assert names(prompts).count("chat") == 12 and names(prompts).count("math") == 6
    assert "mixture: 6 of 30 prompts of math" in caplog.text
    assert [p.id for p in prompts] == [
        p.id for p in mix(MATH | {"weight": 2}, CHAT | {"weight": 4})
    ]
    more = [p.id for p in mix(MATH | {"weight": 2}, CHAT | {"weight": 2})]
    assert {p.id for p in prompts} <= set(more) and len(more) == 24


def test_a_part_has_a_frame_of_its_own(files):
    prompts = mix(MATH | {"prompt_template": "{prompt} Give a number."}, CHAT)
    assert prompts[1].text == "1 + 1? Give a number." and prompts[-1].text == "Say 11."
    assert question(prompts[1]) == question(mix(MATH)[1])


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ("[", "parts is not JSON"),
        ("{}", "parts must be a JSON list of objects"),
        ('[{"source": "jsnl"}]', "part 'jsnl': 'jsnl' is not known; did you mean 'jsonl'?"),
        ('[{"source": "jsonl", "pth": "x"}]', "jsonl takes no 'pth'; did you mean 'path'?"),
        ('[{"source": "quickstart"}, {"source": "quickstart"}]', "two parts are named 'quickst"),
        ('[{"source": "quickstart", "weight": 0}]', "weight of 'quickstart' is 0; above 0"),
        (
            '[{"source": "quickstart", "weight": 1}, {"name": "q", "source": "quickstart"}]',
            "or none",
        ),
        ('[{"source": "mixture"}]', "a mixture holds no mixture"),
        ('[{"weight": 1}]', "None is no name; allowed: "),
        ('[{"source": ["length"]}]', "['length'] is no name; allowed: "),
        (
            '[{"source": "quickstart", "prompt_template": "Think."}]',
            "prompt_template='Think.': mus",
        ),
        ('[{"source": "quickstart", "few_shot": 5}]', "few_shot=5: must be a text"),
        ('[{"source": "jsonl", "path": "x", "prompt_field": 5}]', "jsonl takes prompt_field=5: ex"),
        (
            '[{"source": "answered", "path": "x"}]',
            "'answered' brings responses, and those to a mixture's prompts are sampled",
        ),
    ],
)
def test_a_mistake_in_the_parts_is_told(parts, told):
    with pytest.raises(ConfigError) as caught:
        SOURCES["mixture"](parts=parts)
    assert told in str(caught.value)


def test_a_source_of_a_users_file_may_be_a_part(files):
    text = (
        "from ssppo_jax.types import Prompt\n\ndef two():\n"
        "    return [Prompt(n, ({'role': 'user', 'content': n},)) for n in 'ab']\n"
    )
    Path("own.py").write_text(text)
    prompts = mix(CHAT, {"name": "own", "source": "own.py:two"})
    assert [p.id for p in prompts if p.meta["mixture"] == "own"] == ["own/a", "own/b"]
    SOURCES.pop("own.py:two")


def by_source(**settings):
    members = {"math": {"oracle": "math_verify"}, "chat": {"oracle": "length", "target": 5}}
    return ORACLES["by_source"](members=json.dumps(members), **settings)


def test_each_prompt_is_judged_by_the_oracle_of_its_part(files):
    math, chat = mix(MATH)[2], mix(CHAT)[0]
    prompts, texts = [chat, math, chat], [["a b c", "a b"], ["It is 4.", "5"], ["", "a b c d"]]
    oracle = by_source(preferences=True)
    oracle.check(prompts)
    verdict = checked(oracle.ask(prompts, texts), (3, 2))
    own = ORACLES["length"](target=5).ask([chat, chat], [texts[0], texts[2]])
    np.testing.assert_array_equal(verdict.preference[[0, 2]], own.preference)
    # rewards 1 and 0 through the link at temperature 1
    np.testing.assert_allclose(verdict.preference[1, 0, 1], 1 / (1 + np.exp(-1)), rtol=1e-6)
    found = mixture_stats([EncodedPrompt(p, None, None) for p in prompts], verdict)
    assert found["mixture/chat/prompts"] == 2.0 and found["mixture/math/prompts"] == 1.0


def test_rewards_stay_rewards_where_all_parts_have_them(files):
    turn = {"role": "user", "content": "Describe the ocean"}
    math, chat = mix(MATH)[2], Prompt("c", (turn,), {"mixture": "chat"})
    members = '{"math": {"oracle": "math_verify"}, "chat": {"oracle": "keywords"}}'
    texts = [["Ocean", ""], ["It is 4.", "5"], ["", "Ocean"]]
    verdict = ORACLES["by_source"](members=members).ask([chat, math, chat], texts)
    assert checked(verdict, (3, 2)).reward.tolist() == [[1, 0], [1, 0], [0, 1]]


def test_what_the_oracles_cannot_judge_is_told_before_anything_is_sampled(files):
    chat = mix(CHAT)[0]
    with pytest.raises(ConfigError, match=r"the oracle of 'chat' gives preferences; set"):
        by_source().check([chat])
    other = Prompt("p", chat.messages, {"mixture": "code"})
    with pytest.raises(ConfigError, match="prompt 'p' is of part 'code'; there are oracles for m"):
        by_source(preferences=True).check([other])
    for prompts in ([other], [chat, other]):
        with pytest.raises(ConfigError):
            by_source(preferences=True).ask(prompts, [["a", "b"]] * len(prompts))
    with pytest.raises(ConfigError, match="prompt 'p' is of no mixture"):
        by_source(preferences=True).check([Prompt("p", chat.messages)])
    with pytest.raises(DataError, match="has no answer to check against"):
        by_source(preferences=True).check([Prompt("p", chat.messages, {"mixture": "math"})])
    for members, told in (
        ('{"math": {"oracle": "math_verfy"}}', "'math_verfy' is not known; did you mean"),
        ('{"math": {}}', "'math' names no oracle"),
        ("[]", "members must be a JSON object"),
        ("[", "members is not JSON"),
        ('{"math": {"oracle": 5}}', "5 is no name; allowed: "),
        ('{"math": {"oracle": "by_source"}}', "'math': by_source cannot be its own member"),
        ('{"math": {"oracle": "length", "temperature": -1.0}}', "must be 0 or more"),
    ):
        with pytest.raises(ConfigError, match=told):
            ORACLES["by_source"](members=members)


def test_an_evaluation_has_the_win_rate_of_each_part(files):
    config = schema.load("smoke", {})
    prompts = mix(CHAT)[:2] + mix(MATH)[:2]
    encoded = [EncodedPrompt(p, None, np.uint32(i)) for i, p in enumerate(prompts)]
    candidate, baseline = [["a b c d e"]] * 4, [["a"]] * 2 + [["a b c d e"]] * 2
    members = '{"chat": {"oracle": "length", "target": 5}, "math": {"oracle": "length"}}'
    oracle = ORACLES["by_source"](members=members, preferences=True)
    values = compare(config, oracle, encoded, candidate, baseline).values()
    assert values["mixture/chat/win_rate"] > 0.5 and values["mixture/math/win_rate"] == 0.5
    assert values["mixture/chat/prompts"] == 2.0 and values["prompts"] == 4.0
