"""Small question files in the official formats, and a model that is not sampled."""

import json

import numpy as np

from ssppo_jax.benchmark import answers, settings
from ssppo_jax.types import FINISH_EOS, Samples


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def arena_files(folder, n=3, text="reference"):
    """Keys of an Arena-Hard with n short questions."""
    asked = [{"question_id": f"q{i}", "turns": [{"content": f"say {i}"}]} for i in range(n)]
    answered = [
        {
            "question_id": f"q{i}",
            "model_id": "old",
            "choices": [{"index": 0, "turns": [{"content": f"{text} {i}"}]}],
        }
        for i in range(n)
    ]
    return {
        "benchmark.path": jsonl(folder / "question.jsonl", asked),
        "benchmark.references": jsonl(folder / "reference.jsonl", answered),
    }


SINGLE = "Rate this.\n{question}\n{answer}"
SECOND = "Rate the end.\n{question_1}\n{answer_1}\n{question_2}\n{answer_2}"


def mt_files(folder):
    """FastChat's data folder with two questions, one of which has a reference answer."""
    asked = [
        {"question_id": 1, "category": "writing", "turns": ["Write {x}.", "Again."]},
        {"question_id": 2, "category": "math", "turns": ["1+1?", "2+2?"]},
    ]
    worked = [{"question_id": 2, "choices": [{"turns": ["two", "four"]}]}]
    prompts = [
        ("single-v1", SINGLE),
        ("single-v1-multi-turn", SECOND),
        ("single-math-v1", SINGLE + "\n{ref_answer_1}"),
        ("single-math-v1-multi-turn", SECOND + "\n{ref_answer_2}"),
    ]
    rows = [
        {"name": name, "system_prompt": "Judge.", "prompt_template": text} for name, text in prompts
    ]
    jsonl(folder / "mt_bench" / "question.jsonl", asked)
    jsonl(folder / "mt_bench" / "reference_answer" / "gpt-4.jsonl", worked)
    jsonl(folder / "judge_prompts.jsonl", rows)
    return {"benchmark.folder": str(folder)}


def load(name, given, **more):
    """A benchmark's config and the benchmark, on the tiny random model."""
    overrides = {
        "sampling.max_new_tokens": "8",
        "sampling.batch_size": "8",
        "judge.retry_delay": "0",
    } | {key: str(value) for key, value in given.items()}
    if more.get("judge", "").startswith("local:"):
        overrides.pop("judge.retry_delay")
    config = settings.load(name, overrides, model="random:tiny", **more)
    return config, settings.build(config, overrides)


def canned(monkeypatch, answer):
    """Let answer(prompt) stand for sampling; returns the list of what was asked, as ids."""
    asked = []

    def fake(runtime, sampler, params, encoded, key, *, done, what):
        asked.extend((e.prompt.id, e.tokens.tolist()) for e in encoded)
        texts = [[answer(e.prompt)] for e in encoded]
        length = np.full((len(encoded), 1), 4, np.int32)
        blank = np.zeros((len(encoded), 1, 4), np.float32)
        finish = np.full((len(encoded), 1), FINISH_EOS, np.int8)
        done(list(encoded), Samples(blank, length, blank, blank, finish), texts)

    monkeypatch.setattr(answers, "sample_prompts", fake)
    monkeypatch.setattr(answers.Model, "sampler", lambda self, temperature: temperature)
    monkeypatch.setattr(answers.Model, "params", None)
    return asked
