"""Verifiable rewards for code: the response's code passes the prompt's unit tests."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import numpy as np

from ssppo_jax.config import Positive, one_of, positive
from ssppo_jax.errors import DataError
from ssppo_jax.oracles.answers import heard, said
from ssppo_jax.oracles.fences import PYTHON, blocks
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.oracles.sandbox.run import OUTCOMES, Limits, run_tests
from ssppo_jax.types import Prompt, Verdict

DEFINES = re.compile(r"^(?:async\s+def|def|class)\s", re.MULTILINE)
STYLES = ("auto", "fenced", "whole")
SANDBOXES = ("strict", "limits")
NO_CODE = "no_code"
AT_ONCE = 8  # prompts a call: between calls a run may stop


def code(
    *,
    code_style: Annotated[str, one_of(*STYLES)] = "auto",
    partial: bool = False,
    timeout: Positive = 10.0,
    memory_mb: Annotated[int, positive] = 1024,
    disk_mb: Annotated[int, positive] = 16,
    workers: Annotated[int, positive] = 2,
    sandbox: Annotated[str, one_of(*SANDBOXES)] = "strict",
) -> Oracle:
    """Reward 1 when the code in the response passes every test in meta["tests"], else 0.

    The code runs in a process of its own, contained as `sandbox.run` describes. A prompt's tests
    are a Python snippet or a list of them (assertions, say), run one after the other behind the
    response's code. Rewards [B,K]. Parts: `accuracy`, `tests` (the share that passed), and one of
    `no_code`, `passed`, `failed`, `time`, `memory`, `output`, `disk`, `crash`. None of them is a
    failure of the oracle: the response is wrong.

    Args:
        code_style: fenced: the last ```python block that defines a function or class (else the
            last, else the last block); whole: all of the text; auto: a block where there is one,
            else the text.
        partial: the share of tests passed as reward, in place of all or nothing.
        timeout: seconds for the code and all its tests.
        memory_mb: memory one response may have.
        disk_mb: what it may write.
        workers: responses run at a time.
        sandbox: strict, or limits alone where a system cannot do more and the code can be trusted.
    """
    limits = Limits(timeout, memory_mb, disk_mb, sandbox == "strict")

    def one(task: tuple[Prompt, str]) -> tuple[str, float]:
        prompt, text = task
        found, tests = code_of(heard(prompt, text), code_style), _tests(prompt.meta["tests"])
        if found is None:
            return NO_CODE, 0.0
        outcome = run_tests(found, tests, limits)
        return outcome.outcome, outcome.passed / len(tests)

    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        _check_prompts(prompts)
        tasks = [(p, text) for p, group in zip(prompts, responses, strict=True) for text in group]
        with ThreadPoolExecutor(workers) as pool:
            results = list(pool.map(one, tasks))
        shape = (len(prompts), len(responses[0]))
        share = np.array([share for _, share in results], np.float32).reshape(shape)
        became = np.array([outcome for outcome, _ in results]).reshape(shape)
        accuracy = (became == "passed").astype(np.float32)
        parts = {"accuracy": accuracy, "tests": share}
        parts |= {name: (became == name).astype(np.float32) for name in (NO_CODE, *OUTCOMES)}
        return Verdict(None, share if partial else accuracy, (None,) * len(prompts), parts)

    return Oracle(ask, _check_prompts, at_once=AT_ONCE)


def code_of(text: str, style: str) -> str | None:
    """Return the code in a response, after its thinking; None where there is none."""
    spoken = said(text)
    found = blocks(spoken) if style != "whole" else []
    python = [block.code for block in found if block.language in PYTHON]
    if found:
        code = python or [block.code for block in found]
        return next((c for c in reversed(code) if DEFINES.search(c)), code[-1])
    return (spoken if spoken.strip() else None) if style != "fenced" else None


def _tests(given: Any) -> list[str]:
    """Return the tests of a prompt's meta["tests"]; none if that is neither a snippet nor a list of
    them."""
    many = [given] if isinstance(given, str) else given
    usable = isinstance(many, list | tuple) and all(isinstance(t, str) and t.strip() for t in many)
    return list(many) if usable else []


def _check_prompts(prompts: list[Prompt]) -> None:
    wrong = [p.id for p in prompts if not _tests(p.meta.get("tests"))]
    if wrong:
        raise DataError(
            f"oracle code: prompt {wrong[0]!r} has no tests ({len(wrong)} of {len(prompts)}); give"
            ' every row of the data "tests": a Python snippet that raises when the code is wrong,'
            " or a list of them"
        )


ORACLES = {"code": code}
