"""Verifiable rewards: is the final answer right, and does the response keep to its format? Rewards [B,K] with parts.

    reward = accuracy + format_weight * format

Parts: `accuracy` (1 or 0), `format`, `extracted` (an answer was found at all), `unreadable` (one was found that the
checker could not read, or not compare in time). Such responses are wrong, not failures of the oracle. Prompts need
`meta["answer"]`; those without one are refused before anything is judged.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ssppo_jax.data.tasks import scorer
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.oracles.answers import STYLES, hashed, well_formed
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.types import Failed, Prompt, Verdict

Grade = Callable[[Prompt, str], float | Failed | None]  # (prompt, answer) -> score, 1 when right; None: unreadable


def reasoning_gym(*, answer_style: str = "auto", exact: bool = True, format_weight: float = 0.0) -> Oracle:
    """The score of the task's own `score_answer` on the extracted answer; prompts from data source `reasoning_gym`.

    Tasks give wrong answers up to 0.01 and some give partial credit; `exact` counts only a full score.

    Args:
      answer_style: how the answer is found: auto, boxed, tag, hash, final_number or whole
      exact: 1 for a full score and 0 for anything less; false takes the task's score as it is
      format_weight: weight of the format reward beside the answer's
    """

    def grade(prompt: Prompt, answer: str) -> float | None:
        score = scorer(prompt)
        try:
            return float(score(answer))
        except Exception:  # tasks parse as if the answer had their form; what they raise on a model's text is theirs
            return None

    return _graded("reasoning_gym", grade, answer_style, exact=exact, format_weight=format_weight)


def math_verify(*, answer_style: str = "auto", format_weight: float = 0.0, timeout: float = 5.0) -> Oracle:
    """Whether the extracted answer equals meta["answer"] as mathematics (the math-verify library on sympy).

    Numbers, fractions, sets, intervals, LaTeX; a gold answer may be a GSM8K solution that ends in "#### 42". Answers
    are compared in a process of their own that is killed after `timeout`: what takes longer (9**9**9**9) is wrong,
    and counted as `unreadable`.

    Args:
      answer_style: how the answer is found: auto, boxed, tag, hash, final_number or whole
      format_weight: weight of the format reward beside the answer's
      timeout: seconds one comparison may take
    """
    if not timeout > 0:
        raise ConfigError(f"oracle math_verify: timeout={timeout!r} must be above 0 seconds")
    grade = MathComparer(timeout).grade
    return _graded("math_verify", grade, answer_style, exact=True, format_weight=format_weight)


def _graded(name: str, grade: Grade, answer_style: str, *, exact: bool, format_weight: float) -> Oracle:
    if answer_style not in STYLES:
        raise ConfigError(f"oracle {name}: answer_style={answer_style!r} must be one of {', '.join(STYLES)}")
    if format_weight < 0:
        raise ConfigError(f"oracle {name}: format_weight={format_weight!r} must be 0 or more")

    def one(prompt: Prompt, text: str) -> dict[str, float] | Failed:
        answer = STYLES[answer_style](text)
        score = grade(prompt, answer) if answer is not None else 0.0
        if isinstance(score, Failed):
            return score
        accuracy = float(score is not None and score >= 1.0)
        parts = {
            "accuracy": accuracy,
            "format": float(well_formed(text, answer_style)),
            "extracted": float(answer is not None),
            "unreadable": float(score is None),
        }
        return {"reward": (accuracy if exact else score or 0.0) + format_weight * parts["format"]} | parts

    def oracle(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        _check_answers(name, prompts)
        rows = [[one(p, text) for text in group] for p, group in zip(prompts, responses, strict=True)]
        failed = tuple(next((r for r in row if isinstance(r, Failed)), None) for row in rows)
        names = ("reward", "accuracy", "format", "extracted", "unreadable")
        table = {
            n: np.array(
                [[np.nan if bad else r[n] for r in row] for row, bad in zip(rows, failed, strict=True)], np.float32
            )
            for n in names
        }
        return Verdict(None, table.pop("reward"), failed, table)

    return oracle


def _check_answers(name: str, prompts: list[Prompt]) -> None:
    missing = [p.id for p in prompts if "answer" not in p.meta]
    if missing:
        raise DataError(
            f"oracle {name}: prompt {missing[0]!r} has no answer to check against ({len(missing)} of {len(prompts)}); "
            'give every row of the data an "answer", or use --config.data.source.name=reasoning_gym'
        )


class MathComparer:
    """Answers compared in a process that is killed, and started anew, when one comparison takes too long."""

    def __init__(self, timeout: float):
        self._timeout, self._child = timeout, None

    def grade(self, prompt: Prompt, answer: str) -> float | Failed | None:
        """1 or 0, Failed when the gold answer is no mathematics, None when there was no reply in time."""
        gold = str(prompt.meta["answer"])
        reply = self._ask({"gold": hashed(gold) or gold, "answer": answer})
        if reply is None:
            return None
        return Failed(reply["error"]) if "error" in reply else float(reply["equal"])

    def _ask(self, pair: dict) -> dict | None:
        """The reply, or None when it did not come in time (or the process died of it)."""
        if self._child is None:
            self._start()
        try:
            self._child.stdin.write(json.dumps(pair).encode() + b"\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline() if self._ready(self._timeout) else b""
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            self.close()
            return None
        return json.loads(line)

    def _start(self) -> None:
        file = Path(__file__).with_name("math_worker.py")
        command = [sys.executable, "-I", str(file)]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self._child.stdin.write(b'{"gold": "1", "answer": "1"}\n')  # its imports are not on the first answer's time
        self._child.stdin.flush()
        if not self._ready(60.0) or self._child.stdout.readline() != b'{"equal": true}\n':
            self.close()
            raise ConfigError("oracle math_verify does not start: pip install 'math-verify[antlr4_13_2]==0.9.0'")

    def _ready(self, seconds: float) -> bool:
        return bool(select.select([self._child.stdout], [], [], seconds)[0])

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._child is not None:
            self._child.kill()
            self._child.stdin.close()
            self._child.stdout.close()
            self._child.wait()
            self._child = None

    def __del__(self):
        self.close()


ORACLES = {"reasoning_gym": reasoning_gym, "math_verify": math_verify}
