"""Verifiable rewards: is the final answer right, and does the response keep to its format? Rewards
[B,K] with parts.

    reward = accuracy + format_weight * format

Parts: `accuracy` (1 or 0), `format`, `extracted` (an answer was found at all), `unreadable` (one
was found that the checker could not read, or not compare in time). Such responses are wrong, not
failures of the oracle. Prompts without what it takes (a task, or `meta["answer"]`) are refused
before anything is sampled.

Checkers run what a model writes (`worker_child` says how), so answers are compared in a process of
their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from ssppo_jax.data.tasks import entry_of
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.oracles.answers import STYLES, answer_of, hashed, well_formed
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.oracles.sandbox.worker import Worker
from ssppo_jax.types import Failed, Prompt, Verdict

Grade = Callable[[Prompt, str], dict]  # (prompt, answer) -> the worker's reply
Check = Callable[[list[Prompt]], None]  # raises for prompts that cannot be judged


def reasoning_gym(
    *,
    answer_style: str = "auto",
    exact: bool = True,
    format_weight: float = 0.0,
    timeout: float = 5.0,
) -> Oracle:
    """The score of the task's own `score_answer` on the extracted answer; prompts from data source
    `reasoning_gym`.

    Tasks give wrong answers up to 0.01 and some give partial credit; `exact` counts only a full
    score. What takes longer than `timeout` to score (9**9**9**9 where an expression is asked for)
    is wrong, and counted as `unreadable`.

    Args:
        answer_style: how the answer is found: auto, boxed, tag, hash, final_number, last_line or
          whole.
        exact: 1 for a full score and 0 for anything less; false takes the task's score as it is.
        format_weight: weight of the format reward beside the answer's.
        timeout: seconds the scoring of one answer may take.
    """
    worker = _worker("reasoning_gym", timeout)

    def grade(prompt: Prompt, answer: str) -> dict:
        where, entry = prompt.meta["reasoning_gym"], entry_of(prompt)
        return worker.ask(
            "task", name=where["task"], settings=where["settings"], entry=entry, answer=answer
        )

    return _graded(
        "reasoning_gym", grade, _check_tasks, answer_style, exact=exact, format_weight=format_weight
    )


def math_verify(
    *, answer_style: str = "auto", format_weight: float = 0.0, timeout: float = 5.0
) -> Oracle:
    """Whether the extracted answer equals meta["answer"] as mathematics (the math-verify library on
    sympy).

    Numbers, fractions, sets, intervals, LaTeX; a gold answer may be a GSM8K solution that ends in
    "#### 42". What takes longer than `timeout` to compare (9**9**9**9) is wrong, and counted as
    `unreadable`.

    Args:
        answer_style: how the answer is found: auto, boxed, tag, hash, final_number, last_line or
          whole.
        format_weight: weight of the format reward beside the answer's.
        timeout: seconds one comparison may take.
    """
    worker = _worker("math_verify", timeout)

    def grade(prompt: Prompt, answer: str) -> dict:
        gold = str(prompt.meta["answer"])
        return worker.ask("mathematics", gold=hashed(gold) or gold, answer=answer)

    check = partial(_check_answers, "math_verify")
    return _graded(
        "math_verify", grade, check, answer_style, exact=True, format_weight=format_weight
    )


def _worker(name: str, timeout: float) -> Worker:
    if not 0 < timeout < math.inf:
        raise ConfigError(f"oracle {name}: timeout={timeout!r} must be above 0 seconds, and finite")
    return Worker(timeout)


def _graded(
    name: str, grade: Grade, check: Check, answer_style: str, *, exact: bool, format_weight: float
) -> Oracle:
    if answer_style not in STYLES:
        raise ConfigError(
            f"oracle {name}: answer_style={answer_style!r} must be one of {', '.join(STYLES)}"
        )
    if not 0 <= format_weight < math.inf:
        raise ConfigError(
            f"oracle {name}: format_weight={format_weight!r} must be 0 or more, and finite"
        )

    def one(prompt: Prompt, text: str) -> dict[str, float] | Failed:
        answer = answer_of(text, answer_style)
        reply = {"score": 0.0} if answer is None else grade(prompt, answer)
        if "error" in reply:
            return Failed(reply["error"])
        score = reply.get("score", 0.0)
        parts = {
            "accuracy": float(score >= 1.0),
            "format": float(well_formed(text, answer_style)),
            "extracted": float(answer is not None),
            "unreadable": float("score" not in reply),
        }
        return {
            "reward": (parts["accuracy"] if exact else score) + format_weight * parts["format"]
        } | parts

    def oracle(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        check(prompts)
        rows = [
            [one(p, text) for text in group] for p, group in zip(prompts, responses, strict=True)
        ]
        failed = tuple(next((r for r in row if isinstance(r, Failed)), None) for row in rows)
        names = ("reward", "accuracy", "format", "extracted", "unreadable")
        table = {
            n: np.array(
                [
                    [np.nan if bad else r[n] for r in row]
                    for row, bad in zip(rows, failed, strict=True)
                ],
                np.float32,
            )
            for n in names
        }
        return Verdict(None, table.pop("reward"), failed, table)

    oracle.check = check
    return oracle


def _check_tasks(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        if "reasoning_gym" not in prompt.meta:
            raise ConfigError(
                f"oracle reasoning_gym: prompt {prompt.id!r} comes from another source; set"
                " --config.data.source.name=reasoning_gym, or --config.oracle.name=math_verify for"
                " answers of your own"
            )


def _check_answers(name: str, prompts: list[Prompt]) -> None:
    missing = [p.id for p in prompts if "answer" not in p.meta]
    if missing:
        raise DataError(
            f"oracle {name}: prompt {missing[0]!r} has no answer to check against ({len(missing)}"
            f' of {len(prompts)}); give every row of the data an "answer", or use'
            " --config.data.source.name=reasoning_gym"
        )


ORACLES = {"reasoning_gym": reasoning_gym, "math_verify": math_verify}
