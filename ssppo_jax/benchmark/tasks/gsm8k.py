r"""GSM8K (arXiv 2110.14168), asked and graded as lm-evaluation-harness' task `gsm8k` does.

    strict    the first "#### N" of the answer
    flexible  the last number in the answer

Either equals the gold number if both are the same text without commas, dollar signs, a full stop at
the end, and what stands before "#### ". The answer is cut before "Question:"."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from ml_collections import ConfigDict

from ssppo_jax.benchmark.contract import Benchmark, Grade, Graded, Question, Reply
from ssppo_jax.benchmark.rows import read_rows
from ssppo_jax.config import non_negative
from ssppo_jax.errors import DataError
from ssppo_jax.files import write_records
from ssppo_jax.types import Failed

VERSION = "gsm8k of lm-evaluation-harness, version 3"
STRICT = re.compile(r"#### (-?[0-9.,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED = tuple(map(re.compile, (",", r"\$", "(?s).*#### ", r"\.$")))
INVALID = "[invalid]"  # what the harness compares where nothing is found
FEWSHOT_SEED = 1234


def gsm8k(
    config: ConfigDict,
    *,
    path: str = "",
    split: str = "test",
    num_fewshot: Annotated[int, non_negative] = 0,
    fewshot_path: str = "",
    fewshot_as_multiturn: bool = True,
    apply_chat_template: bool = True,
) -> Benchmark:
    """Ask grade-school problems and compare the final number: `strict` and `flexible` accuracy.

    Args:
        path: the test set: a JSONL file with `question` and `answer`, the folder of a TFDS data
          set, or hf:openai/gsm8k.
        split: of a TFDS or hub data set.
        num_fewshot: worked examples in front of each question, drawn for each as the harness does.
        fewshot_path: where they come from: the training set, as `path`.
        fewshot_as_multiturn: with a chat template, each example is a turn and its answer; false:
          all stand in the one user turn.
        apply_chat_template: false asks in plain text, as for a model without a chat.
    """
    rows = _read(path, what="GSM8K questions", split=split)
    pool = fewshot_path or ("hf:openai/gsm8k" if path.startswith("hf:") else "")
    drawn = _examples(rows, num_fewshot, pool)
    questions = []
    for i, (row, shots) in enumerate(zip(rows, drawn, strict=True)):
        answer = str(row["answer"])
        if STRICT.search(answer) is None:
            raise DataError(
                f"GSM8K question {i + 1}: its answer ends in no '#### N': {answer[-60:]!r}"
            )
        before, asked = _layout(
            str(row["question"]), shots, apply_chat_template and fewshot_as_multiturn
        )
        meta = {"gold": _normal(answer), "doc": row}
        questions.append(Question(str(i), (asked,), before, meta))
    return Benchmark(
        VERSION,
        questions,
        grade,
        headline="flexible",
        sampling={"sampling.max_new_tokens": 256},
        stop=("Question:", "</s>", "<|im_end|>"),
        chat=apply_chat_template,
        write_official=write_samples,
        details={"num_fewshot": num_fewshot},
    )


def grade(question: Question, answers: list[str], replies: list[Reply]) -> Grade | Failed:
    """Return strict and flexible accuracy of one answer."""
    gold, answer = question.meta["gold"], answers[-1]
    return {
        "strict": float(_normal(strict(answer)) == gold),
        "flexible": float(_normal(flexible(answer)) == gold),
    }


def strict(answer: str) -> str:
    """Return the number behind the first "####"."""
    found = STRICT.search(answer)
    return found[1].strip() if found else INVALID


def flexible(answer: str) -> str:
    """Return the last number."""
    found = [m[1] or m[2] for m in FLEXIBLE.finditer(answer)]
    return found[-1].strip() if found else INVALID


def _normal(text: str) -> str:
    for pattern in IGNORED:
        text = pattern.sub("", text)
    return text.lower()


def _read(path: str, *, what: str, split: str, key: str = "path") -> list[dict[str, Any]]:
    subset = "main" if path.startswith("hf:") else ""
    fields = ("question", "answer")
    return read_rows(path, fields=fields, what=what, split=split, subset=subset, key=key)


def _examples(rows: Sequence[dict], number: int, path: str) -> list[list[dict[str, Any]]]:
    """Draw each question's worked examples, one question after the other from one seed."""
    if not number:
        return [[] for _ in rows]
    pool = _read(path, what="worked examples", split="train", key="fewshot_path")
    if number > len(pool):
        raise DataError(f"{path}: {len(pool)} worked examples, and num_fewshot={number}")
    rng = random.Random(FEWSHOT_SEED)
    return [rng.sample(pool, number) for _ in rows]


def _layout(question: str, shots: Sequence[dict], multiturn: bool) -> tuple[tuple[dict, ...], str]:
    """Return the turns in front and the last user turn."""
    asked = f"Question: {question}\nAnswer:"
    worked = [(f"Question: {s['question']}\nAnswer:", str(s["answer"])) for s in shots]
    if multiturn:
        turns = [
            {"role": role, "content": text}
            for pair in worked
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        return tuple(turns), asked
    return (), "".join(f"{q} {a}\n\n" for q, a in worked) + asked


def write_samples(
    folder: Path, graded: Sequence[Graded], names: Mapping[str, str]
) -> list[str] | None:
    """Write samples as the harness logs them: a line for each question, with `resps`."""
    rows = [
        {
            "doc_id": int(one.question.id),
            "doc": one.question.meta["doc"],
            "target": one.question.meta["doc"]["answer"],
            "resps": [[one.answers[-1]]],
            "filtered_resps": {
                "strict-match": strict(one.answers[-1]),
                "flexible-extract": flexible(one.answers[-1]),
            },
            "exact_match": one.values,
        }
        for one in graded
        if not isinstance(one.grade, Failed)
    ]
    write_records(folder / "samples_gsm8k.jsonl", rows)
    return None


BENCHMARKS = {"gsm8k": gsm8k}
