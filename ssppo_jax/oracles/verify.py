"""Verifiable rewards: is the final answer right, and does the response keep to its format?

    reward [B,K] = accuracy + format_weight * format

Parts: `accuracy` (1 or 0), `format`, `extracted` (an answer was found at all), `unreadable` (the
checker could not read the answer, or not compare it in time). Such responses are wrong, not
failures of the oracle. Prompts without what it takes (a task, or `meta["answer"]`) are refused
before anything is sampled.

Each of `answers.readings` is graded until one is right. They are one statement, with and without
the marks around it.

Checkers run what a model writes (`worker_child` says how), so answers are compared in a process of
their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np

from ssppo_jax.config import NonNegative, Positive, one_of
from ssppo_jax.data.tasks import entry_of
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.oracles.answers import STYLES, boxed, hashed, heard, readings, well_formed
from ssppo_jax.oracles.equal import latex, same
from ssppo_jax.oracles.protocol import Oracle, by_name
from ssppo_jax.oracles.sandbox.worker import Worker
from ssppo_jax.types import Failed, Prompt, Verdict

Grade = Callable[[Prompt, str], dict]  # (prompt, answer) -> the worker's reply
Check = Callable[[list[Prompt]], None]  # raises for prompts that cannot be judged
Style = Annotated[str, one_of(*STYLES)]
PARTS = ("accuracy", "format", "extracted", "unreadable")


def reasoning_gym(
    *,
    answer_style: Style = "auto",
    exact: bool = True,
    format_weight: NonNegative = 0.0,
    timeout: Positive = 5.0,
) -> Oracle:
    """Reward with the task's own `score_answer` of the extracted answer; for prompts from data
    source `reasoning_gym`.

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
    worker = Worker(timeout)

    def grade(prompt: Prompt, answer: str) -> dict:
        where, entry = prompt.meta["reasoning_gym"], entry_of(prompt)
        return worker.ask(
            "task", name=where["task"], settings=where["settings"], entry=entry, answer=answer
        )

    return _graded(grade, _check_tasks, answer_style, exact=exact, format_weight=format_weight)


def math_verify(
    *, answer_style: Style = "auto", format_weight: NonNegative = 0.0, timeout: Positive = 5.0
) -> Oracle:
    """Reward an extracted answer that equals meta["answer"]: as a number, a letter, a word, a list,
    or as mathematics (the math-verify library on sympy).

    `equal.same` says what is equal. A gold answer may be a solution that ends in "#### 42" or in a
    box. A null one is refused before anything is sampled. What takes longer than `timeout` to
    compare (9**9**9**9) is wrong, and counted as `unreadable`.

    Args:
        answer_style: how the answer is found: auto, boxed, tag, hash, final_number, last_line or
          whole.
        format_weight: weight of the format reward beside the answer's.
        timeout: seconds one comparison may take.
    """
    worker = Worker(timeout)

    def grade(prompt: Prompt, answer: str) -> dict:
        gold = _gold(prompt)
        if not gold.strip():
            return {"error": f"gold answer {gold!r} is empty"}
        verdict = same(gold, answer)
        if verdict is not None:
            return {"score": float(verdict)}
        return worker.ask("mathematics", gold=latex(gold), answer=latex(answer))

    @functools.cache
    def ready() -> None:
        """Ask once at the start, so that a missing library is no surprise after hours."""
        worker.ask("mathematics", gold="1", answer="1")

    def check(prompts: list[Prompt]) -> None:
        _check_answers(prompts)
        ready()

    return _graded(grade, check, answer_style, exact=True, format_weight=format_weight)


def _gold(prompt: Prompt) -> str:
    """Return the gold answer; of a worked solution, what it says last after #### or in a box."""
    gold = str(prompt.meta["answer"])
    return hashed(gold) or boxed(gold) or gold


def _graded(
    grade: Grade, check: Check, answer_style: str, *, exact: bool, format_weight: float
) -> Oracle:
    def one(prompt: Prompt, text: str) -> list[float] | Failed:
        """Return the score and the PARTS of one response."""
        text = heard(prompt, text)
        answers = readings(text, answer_style, _gold(prompt) if "answer" in prompt.meta else None)
        replies = []
        for answer in answers:
            replies.append(grade(prompt, answer))
            if "error" in replies[-1]:
                return Failed(str(replies[-1]["error"]))
            if replies[-1].get("score", 0.0) >= 1.0 or replies[-1].get("unreadable") == "killed":
                break
        scores = [reply["score"] for reply in replies if "score" in reply]
        score, neat = max(scores, default=0.0), well_formed(text, answer_style)
        return [score, score >= 1.0, neat, bool(answers), bool(answers) and not scores]

    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        check(prompts)
        groups = [
            [one(p, text) for text in group] for p, group in zip(prompts, responses, strict=True)
        ]
        found, failed = by_name(("score", *PARTS), groups)
        reward = found["accuracy" if exact else "score"] + format_weight * found["format"]
        parts = {name: found[name].astype(np.float32) for name in PARTS}
        return Verdict(None, reward.astype(np.float32), failed, parts)

    return Oracle(ask, check)


def _check_tasks(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        if "reasoning_gym" not in prompt.meta:
            raise ConfigError(
                f"oracle reasoning_gym: prompt {prompt.id!r} comes from another source; set"
                " --config.data.source.name=reasoning_gym, or --config.oracle.name=math_verify for"
                " answers of your own"
            )


def _check_answers(prompts: list[Prompt]) -> None:
    missing = [p.id for p in prompts if _null(p.meta.get("answer"))]
    if missing:
        raise DataError(
            f"oracle math_verify: prompt {missing[0]!r} has no answer to check against"
            f' ({len(missing)} of {len(prompts)}); give every row of the data an "answer", name the'
            " column that holds it (--config.data.source.answer_field=...), or use"
            " --config.data.source.name=reasoning_gym"
        )


def _null(answer: Any) -> bool:
    """Return true for what a row without an answer holds: nothing, null or NaN."""
    return answer is None or answer != answer


ORACLES = {"reasoning_gym": reasoning_gym, "math_verify": math_verify}
