"""GSM8K: layout and filters equal lm-evaluation-harness' (tests/golden/make_benchmarks.py)."""

import json
from pathlib import Path

import pytest
from small_benchmarks import jsonl, load

from ssppo_jax.benchmark.contract import Question
from ssppo_jax.benchmark.tasks import competition, gsm8k

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "gsm8k.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["filters"], ids=lambda case: case["answer"][:30])
def test_filters_and_grades_equal_the_harness(case):
    answer = case["answer"]
    assert (gsm8k.strict(answer), gsm8k.flexible(answer)) == (case["strict"], case["flexible"])
    question = Question("0", ("",), meta={"gold": gsm8k._normal(case["target"])})
    grade = gsm8k.grade(question, [answer], [])
    assert grade == {"strict": case["strict_match"], "flexible": case["flexible_match"]}


@pytest.mark.parametrize("layout", GOLDEN["prompts"])
def test_worked_examples_are_drawn_and_laid_out_as_the_harness_does(layout, tmp_path):
    given = {
        "benchmark.path": jsonl(tmp_path / "test.jsonl", GOLDEN["test"]),
        "benchmark.fewshot_path": jsonl(tmp_path / "train.jsonl", GOLDEN["train"]),
        "benchmark.num_fewshot": 2,
        "benchmark.apply_chat_template": layout != "plain",
        "benchmark.fewshot_as_multiturn": layout == "multiturn",
    }
    _, benchmark = load("gsm8k", given)
    asked = [
        [*q.before, {"role": "user", "content": q.turns[0]}] if layout != "plain" else q.turns[0]
        for q in benchmark.questions
    ]
    assert asked == GOLDEN["prompts"][layout]


def test_examples_of_the_hub_are_those_of_its_main_part(tmp_path, monkeypatch):
    asked = []

    def read(source, *, subset="", **more):
        asked.append((source, subset))
        return GOLDEN["train"]

    monkeypatch.setattr(gsm8k, "read_rows", read)
    for path in ("own.jsonl", "hf:openai/gsm8k"):
        load("gsm8k", {"benchmark.path": path, "benchmark.fewshot_path": "hf:openai/gsm8k",
                       "benchmark.num_fewshot": 1})  # fmt: skip
    hub = ("hf:openai/gsm8k", "main")
    assert asked == [("own.jsonl", ""), hub, hub, hub]


def test_mathematics_is_checked_as_mathematics(tmp_path):
    rows = [
        {"problem": "Half?", "answer": "\\frac{1}{2}"},
        {"problem": "?", "solution": "\\boxed{3}"},
        {"problem": "Nothing?", "answer": 0},
    ]
    _, benchmark = load("math", {"benchmark.path": jsonl(tmp_path / "x.jsonl", rows)})
    first, second, third = benchmark.questions
    assert benchmark.grade(third, ["So \\boxed{0}"], [])["accuracy"] == 1.0
    assert first.turns[0] == f"Half?\n{competition.INSTRUCTION}"
    assert benchmark.grade(first, ["So \\boxed{0.5}"], [])["accuracy"] == 1.0
    assert benchmark.grade(second, ["So \\boxed{4}"], [])["accuracy"] == 0.0
