"""Arena-Hard v0.1 (arXiv 2406.11939): 500 prompts against a reference model's answers.

The judge sees both orders and gives one of five verdicts. A verdict of "significantly better"
counts three times. The win rate is Bradley-Terry's against the reference: with two players its
maximum likelihood is closed,

    P(model beats reference) = (W + T / 2) / (W + L + T)

of the weighted wins, losses and ties. The interval resamples questions, so that a question's two
games stay together; the official tool resamples games."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

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
from ssppo_jax.benchmark.templates import fill
from ssppo_jax.config import positive
from ssppo_jax.errors import DataError
from ssppo_jax.evaluate import Estimate
from ssppo_jax.files import read_json, write_records
from ssppo_jax.oracles.answers import said
from ssppo_jax.types import Failed

LABEL = re.compile(r"\[\[([AB<>=]+)\]\]")
VERDICTS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")
UNREADABLE = "unreadable: no verdict, or several, in the judge's replies"


def arena_hard(
    config: ConfigDict,
    *,
    path: str = "",
    references: str = "",
    weight: Annotated[int, positive] = 3,
) -> Benchmark:
    """Play each prompt in both orders against a reference model: Bradley-Terry win rate.

    Args:
        path: the official questions (question.jsonl).
        references: the reference model's answers in the official format (model_answer/NAME.jsonl);
          the published numbers are against gpt-4-0314. A run of this benchmark writes such a file
          of its own model.
        weight: games that a significant win counts as.
    """
    fields = ("question_id", "turns")
    rows = read_rows(path, fields=fields, what="Arena-Hard questions")
    answers, player = _references(references)
    questions, lacking = [], []
    for row in rows:
        name = str(row["question_id"])
        if name not in answers:
            lacking.append(name)
            continue
        text = turns_of(row, path)[0]
        meta = {"reference": answers[name], "cluster": row.get("cluster", "")}
        questions.append(Question(name, (text,), meta=meta))
    if lacking:
        raise DataError(
            f"{references}: no answer to {len(lacking)} of {len(rows)} questions, such as"
            f" {lacking[0]}; a win rate over the rest would be another benchmark"
        )
    template = read_json(Path(__file__).with_name("arena_hard_v01.json"))
    return Benchmark(
        f"arena-hard-v0.1, template {template['version']}, against {player}",
        questions,
        lambda question, own, replies: grade(replies, weight),
        headline="win_rate",
        requests=lambda question, own: requests_of(template, question, own[-1]),
        aggregate=aggregate,
        sampling={"sampling.max_new_tokens": 4096},
        write_official=write,
    )


def _references(path: str) -> tuple[dict[str, str], str]:
    """Return the reference answers by question, and the reference model's name."""
    fields, what = ("question_id", "choices"), "Arena-Hard reference answers"
    rows = read_rows(path, fields=fields, what=what, key="references")
    found = {}
    for number, row in enumerate(rows, 1):
        try:
            turns = turns_of(row | {"turns": row["choices"][0]["turns"]}, path)
            found[str(row["question_id"])] = turns[0]
        except (LookupError, TypeError):
            raise DataError(f"{path}: record {number} has no choices[0].turns[0]") from None
    return found, str(rows[0].get("model_id", "reference"))


def requests_of(template: Mapping[str, str], question: Question, answer: str) -> list[Request]:
    """Return the two games' requests: the reference is A in the first and B in the second."""
    reference, found = question.meta["reference"], []
    for a, b in ((reference, answer), (answer, reference)):
        fields = {"question_1": question.turns[0], "answer_1": a, "answer_2": b}
        chat = [
            {"role": "system", "content": template["system_prompt"]},
            {"role": "user", "content": fill(template["prompt_template"], fields)},
        ]
        verdicts = tuple(f"[[{verdict}]]" for verdict in VERDICTS)
        found.append(Request(chat, verdicts, max_tokens=4096))
    return found


def verdict_of(reply: Reply) -> str | None:
    """Return the verdict that a reply holds; None for none, or for different ones."""
    found = set(LABEL.findall(said(reply.text))) & set(VERDICTS)
    return found.pop() if len(found) == 1 else None


def grade(replies: list[Reply], weight: int) -> Grade | Failed:
    """Return the weighted wins, losses and ties of the model over the games that can be read."""
    lead = dict(zip(VERDICTS, (weight, 1, 0, -1, -weight), strict=True))  # of A over B
    ahead = [  # what the model is ahead by: it is B in the first game and A in the second
        None if verdict is None else float(sign * lead[verdict])
        for verdict, sign in zip(map(verdict_of, replies), (-1, 1), strict=True)
    ]
    games = [x for x in ahead if x is not None]
    if not games:
        return Failed(UNREADABLE)
    wins = sum(x for x in games if x > 0)
    losses = sum(-x for x in games if x < 0)
    ties = float(sum(x == 0 for x in games))
    second, first = (math.nan if x is None else (x > 0) + 0.5 * (x == 0) for x in ahead)
    return {
        "wins": wins,
        "losses": losses,
        "ties": ties,
        "won_second": second,
        "won_first": first,
        "unreadable_games": float(len(replies) - len(games)),
        "win_rate": 100 * (wins + ties / 2) / (wins + losses + ties),
    }


def aggregate(graded: Sequence[Graded]) -> dict[str, Estimate]:
    """Return the Bradley-Terry win rate in percent, and the rates by the order of presentation."""
    grades = [one.values for one in graded if one.values]
    won = [100 * (g["wins"] + g["ties"] / 2) for g in grades]
    games = [g["wins"] + g["losses"] + g["ties"] for g in grades]
    return {
        "win_rate": ratio_of(won, games),
        "won_where_shown_first": mean_of([100 * g["won_first"] for g in grades]),
        "won_where_shown_second": mean_of([100 * g["won_second"] for g in grades]),
    }


def write(folder: Path, graded: Sequence[Graded], names: Mapping[str, str]) -> list[str]:
    """Write model_answer/MODEL.jsonl and model_judgment/JUDGE/MODEL.jsonl as the tool does."""
    answers, judgments, unreadable = [], [], 0.0
    for one in graded:
        if not one.answers:
            continue
        turn = {"content": one.answers[-1], "token_len": one.tokens[-1]}
        answers.append(answer_record(one.question.id, names["model"], [turn]))
        if isinstance(one.grade, Failed):
            continue
        unreadable += one.values["unreadable_games"]
        games = [{"judgment": r.text, "score": verdict_of(r)} for r in one.replies]
        judgments.append(
            {
                "question_id": one.question.id,
                "model": names["model"],
                "judge": names["judge"],
                "games": games,
            }
        )
    write_records(folder / "model_answer" / f"{names['model']}.jsonl", answers)
    judge = as_file_name(names["judge"]) or "judge"
    write_records(folder / "model_judgment" / judge / f"{names['model']}.jsonl", judgments)
    return [f"{unreadable:g} games are unreadable and left out"] if unreadable else []


def answer_record(question_id: Any, model: str, turns: Sequence[Any]) -> dict[str, Any]:
    """Return an answer as FastChat's and Arena-Hard's tools read it."""
    return {
        "question_id": question_id,
        "answer_id": f"{model}-{question_id}",
        "model_id": model,
        "choices": [{"index": 0, "turns": list(turns)}],
        "tstamp": time.time(),
    }


BENCHMARKS = {"arena_hard": arena_hard}
