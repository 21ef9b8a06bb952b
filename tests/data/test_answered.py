"""Rows with given responses: every format makes the same pair; every mistake is told by name."""

import json
import logging

import pytest

from ssppo_jax.data import GIVEN
from ssppo_jax.data.answered import answered
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.types import Given

USER = {"role": "user", "content": "What is the sea?"}
GOOD, BAD = "Salt water.", "A kind of bread."
LABEL = Given((GOOD, BAD), preference=((0.5, 1.0), (0.0, 0.5)))


def said(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def read(tmp_path):
    def read(*rows, **settings):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return answered(path=str(path), **settings)

    return read


SAME = {  # one pair in every format
    "standard": {"prompt": USER["content"], "chosen": GOOD, "rejected": BAD},
    "conversational": {"prompt": [USER], "chosen": [said(GOOD)], "rejected": [said(BAD)]},
    "implicit prompt": {"chosen": [USER, said(GOOD)], "rejected": [USER, said(BAD)]},
    "UltraFeedback, binarized": {
        "prompt": USER["content"],
        "prompt_id": "ab12",
        "chosen": [USER, said(GOOD)],
        "rejected": [USER, said(BAD)],
        "messages": [USER, said(GOOD)],
        "score_chosen": 8.5,
        "score_rejected": 8.5,
    },
    "a transcript": {
        "chosen": f"\n\nHuman: {USER['content']}\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: {USER['content']}\n\nAssistant: {BAD}",
    },
    "a transcript as prompt": {
        "prompt": f"\n\nHuman: {USER['content']}\n\nAssistant:",
        "chosen": GOOD,
        "rejected": BAD,
    },
}


@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
def test_every_format_makes_the_same_pair(read, row):
    (prompt,) = read(row)
    assert (prompt.messages, prompt.given) == ((USER,), LABEL)


def test_texts_without_a_prompt_are_parted_at_the_start_of_a_word(read):
    (prompt,) = read({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert prompt.text == "The sky is"
    assert prompt.given.texts == ("blue.", "black.")


def test_sppo_columns_are_win_rates(read):
    probs = {"chosen_probs": 0.8, "chosen_probs_win": 0.7, "chosen_probs_lose": 0.4}
    (prompt,) = read(SAME["implicit prompt"] | probs)
    assert prompt.given.win_rate == (0.7, 0.4)
    assert prompt.given.preference[0][1] == 0.8
    (hard,) = read(SAME["implicit prompt"] | probs, judged_by="label")
    assert hard.given == LABEL


def test_scores_are_used_where_they_are_asked_for(read):
    row = SAME["standard"] | {"score_chosen": 3, "score_rejected": 7.5}
    (prompt,) = read(row, judged_by="scores")
    assert prompt.given == Given((GOOD, BAD), reward=(3.0, 7.5))


def test_groups_and_demonstrations(read):
    group = {"prompt": "Name a sea.", "responses": ["North", "Red", "Dead"]}
    (scored,) = read(group | {"scores": [1, 3, 2]})
    assert scored.given == Given(("North", "Red", "Dead"), reward=(1.0, 3.0, 2.0))
    matrix = [[0.5, 0.2, 0.9], [0.8, 0.5, 0.4], [0.1, 0.6, 0.5]]
    (judged,) = read(group | {"preference": matrix})
    assert judged.given.preference == tuple(map(tuple, matrix))
    shown = ({"prompt": "Hi", "completion": "Yes?"}, {"messages": [USER, said(GOOD)]})
    one, two = read(*shown)
    assert (one.given, two.given) == (Given(("Yes?",)), Given((GOOD,)))
    assert two.messages == (USER,)


STANDARD = SAME["standard"]
GROUP = {"prompt": "a", "responses": ["b", "c"]}
MISTAKES = {
    "missing rejected": ({"prompt": "a", "chosen": "b"}, 'missing field "rejected"'),
    "no responses": ({"prompt": "a"}, "has no responses.*the row has: prompt"),
    "equal": (STANDARD | {"rejected": GOOD}, "all responses are the same text"),
    "empty": (STANDARD | {"rejected": " "}, "response 2 of 2 is empty"),
    "empty turn": (
        {"chosen": [USER, said(GOOD)], "rejected": [USER, said("")]},
        "response 2 of 2 is empty",
    ),
    "role": ({"chosen": [USER, USER], "rejected": [USER, said(BAD)]}, "one turn of the assistant"),
    "two turns": (
        {"prompt": "a", "chosen": [said("b"), USER, said("c")], "rejected": [said("d")]},
        "it has: assistant, user, assistant",
    ),
    "other prompt": (
        {"prompt": "a", "chosen": [USER, said("b")], "rejected": [USER, said("c")]},
        "after the prompt it has: user, assistant",
    ),
    "nothing in common": (
        {"chosen": "Yes, it is", "rejected": "No"},
        '"chosen" and "rejected" begin differently',
    ),
    "other column": (
        {"question": "a", "chosen": "Yes", "rejected": "No"},
        'has no "prompt".*; the row also has: question',
    ),
    "text and turns": ({"chosen": "b", "rejected": [said("c")]}, "both be text or both be turns"),
    "NaN": (GROUP | {"scores": [1.0, "nan"]}, "'nan', which is no number"),
    "ragged": (GROUP | {"scores": [1.0]}, "must be 2 numbers"),
    "matrix rows": (GROUP | {"preference": [[0.5, 1.0]]}, "2 rows of 2 numbers"),
    "constant sum": (
        GROUP | {"preference": [[0.5, 0.9], [0.3, 0.5]]},
        r"\[0\]\[1\] = 0.9 and \[1\]\[0\] = 0.3 do not sum to 1",
    ),
    "unjudged": (GROUP, 'need one of "scores"'),
    "one response": ({"prompt": "a", "responses": ["b"], "scores": [1]}, "at least two"),
    "probability": (STANDARD | {"chosen_probs": 1.5}, '"chosen_probs" is 1.5, not a probability'),
    "probs half": (
        STANDARD | {"chosen_probs": 0.5, "chosen_probs_win": 0.5},
        'missing field "chosen_probs_lose"',
    ),
    "prompt ends": ({"messages": [said("a"), said("b")]}, "must end with a user turn"),
    "no answer": ({"messages": [USER]}, "must end with the assistant's turn, not user"),
    "image": (STANDARD | {"image": "x.png"}, '"image", which no model here reads'),
    "turn, no list": (STANDARD | {"chosen": said(GOOD)}, '"chosen" must be a list of turns'),
    "turn, no text": ({"messages": {"role": "user", "content": None}}, "must be a list of turns"),
    "surrogate": (STANDARD | {"chosen": "\ud800"}, "response 1 of 2 contains half of a surrogate"),
    "huge": (GROUP | {"scores": [10**400, 1]}, "too large"),
    "id": (
        STANDARD | {"id": "given", "rejected": "Bread."},
        "id 'given' is that of another row, .*rows.jsonl:1; give each its own",
    ),
    "images": (STANDARD | {"images": ["x.png"]}, '"images", which no model here reads'),
}


@pytest.mark.parametrize(("row", "reason"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_its_line_and_the_way_to_leave_it_out(read, row, reason):
    with pytest.raises(DataError, match=rf"rows.jsonl:2: .*{reason}(.|\n)*bad_rows=drop"):
        read(STANDARD | {"id": "given"}, row)


def test_bad_rows_are_left_out_and_counted_on_request(read, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(read(STANDARD, {"prompt": "a"}, bad_rows="drop")) == 1
    assert "left out 1 bad row" in caplog.text and "rows.jsonl:2" in caplog.text


def test_repeated_rows_are_left_out_and_listed_with_the_first(read, caplog):
    other = STANDARD | {"rejected": "Bread."}  # the same prompt: another pair of its own
    with caplog.at_level(logging.WARNING):
        assert len(read(STANDARD, other, STANDARD)) == 2
    assert "left out 1 repeated row" in caplog.text
    assert "rows.jsonl:3" in caplog.text and "rows.jsonl:1)" in caplog.text


def test_rows_of_different_kinds_are_refused_with_an_example_of_each(read):
    ragged = {"prompt": "b", "responses": ["x", "y", "z"], "scores": [1, 2, 3]}
    with pytest.raises(DataError, match=r"(?s)rows.jsonl:1: a pair.*rows.jsonl:2: 3 responses"):
        read(STANDARD, ragged)


def test_a_source_needs_a_file_or_a_data_set():
    with pytest.raises(ConfigError, match=r"path=pairs\.jsonl"):
        answered()
    with pytest.raises(DataError, match="cannot be read"):
        answered(path="/nowhere/pairs.jsonl")


def test_this_source_alone_gives_responses():
    assert [name for name, given in GIVEN.items() if given] == ["answered"]


def test_a_column_of_another_name_is_said_once_and_not_row_by_row(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"a{i}", "chosen": "b", "reject": "c"} for i in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for way in ("error", "drop"):
        with pytest.raises(DataError) as error:
            answered(path=str(path), bad_rows=way)
        told = 'missing field "rejected"; the row has: prompt, chosen, reject'
        assert str(error.value) == f"none of 9 rows can be used; {path}:1: {told}"
