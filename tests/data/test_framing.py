"""What a run puts around every prompt, and columns by other names, as GSM8K has them."""

import json

import pytest
from test_chat import CHATML, byte_tokenizer

from ssppo_jax import schema
from ssppo_jax.data import SOURCES, question
from ssppo_jax.data.chat import encode_chat
from ssppo_jax.data.framing import framed
from ssppo_jax.data.prepare import prepare_prompts
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.types import Prompt

PLAIN = {"system_prompt": "", "few_shot": "", "prompt_template": "{prompt}"}
# A row of GSM8K, as the data set has it.
GSM8K = {
    "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many"
    " clips in May. How many clips did Natalia sell altogether in April and May?",
    "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72"
    " clips altogether in April and May.\n#### 72",
}


def asks(text, **meta):
    return Prompt("p", ({"role": "user", "content": text},), meta)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# ---- columns by their names


def test_columns_of_other_names_are_read_by_mapping(tmp_path):
    rows = [GSM8K, {"question": "1 + 1?", "answer": "2"}]
    path = write(tmp_path / "gsm8k.jsonl", rows)
    first, second = SOURCES["jsonl"](path=path, prompt_field="question", answer_field="answer")
    assert first.text == GSM8K["question"] and first.meta == {"answer": GSM8K["answer"]}
    assert second.meta == {"answer": "2"} and first.id.startswith("h")
    path = write(tmp_path / "other.jsonl", [{"q": "1 + 1?", "solution": 2, "level": 1}])
    (other,) = SOURCES["jsonl"](path=path, prompt_field="q", answer_field="solution")
    assert other.meta == {"answer": 2, "level": 1} and other.id == second.id


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, '1: missing field "prompt"; the row has: q, solution'),
        ({"prompt_field": "Q"}, '1: missing field "Q"; the row has: q, solution'),
        (
            {"prompt_field": "q", "answer_field": "anwser"},
            '1: missing field "anwser"; the row has: q, solution',
        ),
    ],
)
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path, settings, reason):
    path = write(tmp_path / "in.jsonl", [{"q": "1 + 1?", "solution": "2"}])
    with pytest.raises(DataError) as caught:
        SOURCES["jsonl"](path=path, **settings)
    assert reason in str(caught.value)


def test_two_columns_for_one_answer_are_refused(tmp_path):
    path = write(tmp_path / "in.jsonl", [{"prompt": "a", "answer": "1", "solution": "2"}])
    with pytest.raises(DataError, match='has both "answer" and "solution"; remove one'):
        SOURCES["jsonl"](path=path, answer_field="solution")


IMAGE = {"type": "image", "image": "cat.png"}
TEXT = {"type": "text", "text": "What is it?"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "images": ["cat.png"]}, 'has "images", and models here read text alone'),
        ({"prompt": "a", "tools": [{"name": "f"}]}, 'has "tools", of which no prompt is made'),
        (
            {"messages": [{"role": "user", "content": [IMAGE, TEXT]}]},
            "turn 1 has a part 'image', and models here read text alone",
        ),
        (
            {"messages": [{"role": "user", "content": [TEXT, TEXT]}]},
            "turn 1 has 2 parts of text; write it as one string",
        ),
        ({"messages": [{"role": "tool", "content": "4"}]}, "turn 1 has role 'tool'; allowed: "),
    ],
)
def test_what_no_model_here_reads_is_refused_by_name(tmp_path, row, reason):
    with pytest.raises(DataError) as caught:
        SOURCES["jsonl"](path=write(tmp_path / "in.jsonl", [row]))
    assert reason in str(caught.value)


def test_a_content_of_one_text_part_is_that_text(tmp_path):
    row = {"messages": [{"role": "user", "content": [TEXT]}], "images": None}
    (prompt,) = SOURCES["jsonl"](path=write(tmp_path / "in.jsonl", [row]))
    assert prompt.text == "What is it?"


# ---- what stands around a prompt


def test_system_turn_examples_and_template_stand_in_this_order(tmp_path):
    shots = [{"prompt": "1 + 1?", "completion": "2"}, {"prompt": "2 + 2?", "completion": "4"}]
    settings = {
        "system_prompt": "Be brief.",
        "few_shot": write(tmp_path / "shots.jsonl", shots),
        "prompt_template": "{prompt}\n({unit}, within \\boxed{}.)",
    }
    (prompt,) = framed([asks("3 + 3?", unit="apples", answer="6")], settings)
    assert [(turn["role"], turn["content"]) for turn in prompt.messages] == [
        ("system", "Be brief."),
        ("user", "1 + 1?"),
        ("assistant", "2"),
        ("user", "2 + 2?"),
        ("assistant", "4"),
        ("user", "3 + 3?\n(apples, within \\boxed{}.)"),
    ]
    assert prompt.meta == {"unit": "apples", "answer": "6"}


def test_framing_does_not_change_what_is_asked(tmp_path):
    """A run with another system prompt must know the held-out prompts of an earlier one."""
    plain = asks("3 + 5?")
    (prompt,) = framed([plain], PLAIN | {"system_prompt": "Be brief."})
    assert prompt.id == plain.id and question(prompt) == question(plain)
    assert question(prompt) == question(asks("5 + 3?"))
    assert framed([plain], PLAIN) == [plain]


def test_earlier_turns_of_a_prompt_come_after_the_examples(tmp_path):
    turns = (
        {"role": "system", "content": "own"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Go on"},
    )
    shots = write(tmp_path / "shots.jsonl", [{"prompt": "a", "completion": "b"}])
    settings = {"system_prompt": "", "few_shot": shots, "prompt_template": "{prompt}!"}
    (prompt,) = framed([Prompt("p", turns)], settings)
    texts = [turn["content"] for turn in prompt.messages]
    assert texts == ["own", "a", "b", "Hi", "Hello.", "Go on!"]
    with pytest.raises(ConfigError, match=r"data.system_prompt is set, and prompt 'p' has a sys"):
        framed([Prompt("p", turns)], PLAIN | {"system_prompt": "Be brief."})


def test_a_template_names_fields_that_there_are():
    with pytest.raises(DataError, match=r"names \{unti\}, and prompt 'p' has no such text.*unit"):
        framed([asks("3 + 3?", unit="apples")], PLAIN | {"prompt_template": "{prompt} {unti}"})


@pytest.mark.parametrize(
    ("template", "must"),
    [("Think first.", "a text with {prompt}"), ("{prompt} It is {answer}.", "without {answer}")],
)
def test_a_template_without_the_prompt_or_with_the_answer_is_refused(template, must):
    with pytest.raises(ConfigError) as caught:
        schema.load("smoke", {"data.prompt_template": template})
    assert must in str(caught.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "answer": "b"}, 'an example has "prompt" and "completion"; this row:'),
        ({"prompt": "a", "completion": " "}, '"completion" is empty'),
    ],
)
def test_a_bad_example_is_named_by_its_line(tmp_path, row, reason):
    path = write(tmp_path / "shots.jsonl", [{"prompt": "a", "completion": "b"}, row])
    with pytest.raises(DataError) as caught:
        framed([asks("3 + 3?")], PLAIN | {"few_shot": path})
    assert str(caught.value).startswith(f"{path}:2: {reason}")


# ---- templates


def test_a_base_model_reads_the_plain_template_by_config(tmp_path):
    path = write(tmp_path / "in.jsonl", [{"prompt": "hi"}, {"prompt": "so"}])
    config = schema.load("smoke", {"data.source.name": "jsonl", "data.source.path": path})
    settings = config.data.to_dict() | {"heldout": 1}
    tokenizer = byte_tokenizer(template=None, bos="<|endoftext|>")
    with pytest.raises(ConfigError, match=r"--config.data.template=plain"):
        prepare_prompts(settings, tokenizer, seed=0)
    made = prepare_prompts(settings | {"template": "plain"}, tokenizer, seed=0)
    text = tokenizer.decode(made.train[0].tokens.tolist())
    assert text in [f"<|endoftext|>User: {said}\n\nAssistant:" for said in ("hi", "so")]


def test_a_template_may_be_a_file(tmp_path):
    file, turns = tmp_path / "chatml.jinja", [{"role": "user", "content": "hi"}]
    file.write_text(CHATML)
    with_own, without = byte_tokenizer(template=CHATML), byte_tokenizer(template=None)
    ids = encode_chat(without, turns, template=str(file)).tolist()
    assert ids == encode_chat(with_own, turns).tolist()
    with pytest.raises(ConfigError, match="'plane' is neither model nor plain nor a file of text"):
        encode_chat(without, turns, template="plane")
