"""Verifiable rewards for code: the response's code passes the prompt's unit tests."""

from __future__ import annotations

import ast
import functools
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import numpy as np

from ssppo_jax.config import Positive, one_of, positive
from ssppo_jax.errors import DataError
from ssppo_jax.oracles.answers import heard, said
from ssppo_jax.oracles.fences import PYTHON, blocks
from ssppo_jax.oracles.protocol import Oracle, by_name
from ssppo_jax.oracles.sandbox.run import OUTCOMES, Limits, Starters, supervised
from ssppo_jax.oracles.sandbox.shapes import NOTHING, parse, why_not
from ssppo_jax.types import Failed, Prompt, Verdict

ASKED = re.compile(r"\bdef[ \t]+(\w+)[ \t]*\(")
STYLES = ("auto", "fenced", "whole")
SANDBOXES = ("strict", "limits")
NO_CODE = "no_code"
PARTS = ("accuracy", "tests", "left", "namespaces", NO_CODE, *OUTCOMES)
MADE = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
AT_ONCE = 8  # prompts a call: between calls a run may stop

_log = logging.getLogger(__name__)


def code(
    *,
    code_style: Annotated[str, one_of(*STYLES)] = "auto",
    partial: bool = False,
    timeout: Positive = 10.0,
    memory_mb: Annotated[int, positive] = 1024,
    disk_mb: Annotated[int, positive] = 16,
    workers: Annotated[int, positive] = 2,
    sandbox: Annotated[str, one_of(*SANDBOXES)] = "strict",
    held_back: bool = True,
) -> Oracle:
    """Reward 1 when the code in the response passes every test in meta["tests"], else 0.

    The code runs in a process of its own, contained as `sandbox.run` describes. A prompt's tests
    are a Python text or a list of them, run one after the other behind the response's code. A text
    may hold assertions, HumanEval's `check(candidate)`, pytest functions, `unittest` classes, or a
    doctest session (`sandbox.shapes`). The candidate is meta["entry_point"], else the function
    whose `def` the prompt shows, else the last that the response defines.

    Rewards [B,K]. Parts: `accuracy`, `tests` (the share that passed), `left` (files of its folder
    that could not be removed), `namespaces` (1 where the system granted them), and one of
    `no_code`, `passed`, `failed`, `time`, `memory`, `output`, `disk`, `crash`. None of them is a
    failure of the oracle: the response is wrong. A prompt fails if its tests check nothing, or if
    no sandbox could be set up. Equal responses to a prompt are run once and have one verdict.

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
        held_back: keep the constants that tests compare with outside the code's process, and
          compare there; false where objects equal plain values by an `__eq__` of their own.
    """
    limits = Limits(timeout, memory_mb, disk_mb, sandbox == "strict", held_back=held_back)
    granted: list[tuple[str, ...]] = []  # the namespaces of the first that ran

    def one(prompt: Prompt, text: str, starters: Starters) -> list[float] | Failed:
        """Return the PARTS of one response."""
        found = code_of(heard(prompt, text), code_style)
        tests = _tests(prompt.meta["tests"])
        problem, checking = why_not(tests)
        if problem:
            return Failed(f"{NOTHING}: {problem}")
        if found is None:
            return [float(name == NO_CODE) for name in PARTS]
        report = supervised(found, tests, limits, _entries(prompt), starters)
        if report.broken:
            return Failed(report.broken)
        if not granted:
            granted.append(report.namespaces)
        passed = [ok for ok, checks in zip(report.each, checking, strict=True) if checks]
        known: dict[str, float] = {
            "accuracy": report.outcome.outcome == "passed",
            "tests": sum(passed) / len(passed),
            "left": report.left,
            "namespaces": bool(report.namespaces),
            report.outcome.outcome: 1.0,
        }
        return [known.get(name, 0.0) for name in PARTS]

    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        _check_prompts(prompts)
        tasks = [(b, text) for b, group in enumerate(responses) for text in dict.fromkeys(group)]
        with Starters() as starters, ThreadPoolExecutor(workers) as pool:
            results = pool.map(lambda task: one(prompts[task[0]], task[1], starters), tasks)
            found = dict(zip(tasks, results, strict=True))
        if granted:
            tell()
        groups = [[found[b, text] for text in group] for b, group in enumerate(responses)]
        numbers, failed = by_name(PARTS, groups)
        parts = {name: part.astype(np.float32) for name, part in numbers.items()}
        return Verdict(None, parts["tests" if partial else "accuracy"], failed, parts)

    @functools.cache
    def tell() -> None:
        """Log once what contains the code."""
        filters = "Landlock, seccomp" if limits.strict else "no filters (oracle.sandbox=limits)"
        names = ", ".join(granted[0]) or "none were granted"
        _log.info("code oracle: limits, %s; namespaces: %s", filters, names)

    return Oracle(ask, _check_prompts, at_once=AT_ONCE)


def _entries(prompt: Prompt) -> list[str]:
    """Return the names that the function asked for may have, the likeliest first."""
    given = prompt.meta.get("entry_point")
    if isinstance(given, str) and given.strip():
        return [given.strip()]
    return ASKED.findall(prompt.text)[::-1]


# ---- code in a response --------------------------------------------------------------------------


def code_of(text: str, style: str) -> str | None:
    """Return the code in a response, after its thinking; None where there is none.

    Of several Python blocks it is the last that defines something other than tests, else the last.
    """
    spoken = said(text)
    found = blocks(spoken) if style != "whole" else []
    if found:
        python = [block.code for block in found if block.language in PYTHON]
        python = python or [block.code for block in found]
        return next((code for code in reversed(python) if _defines(code)), python[-1])
    return (spoken if spoken.strip() else None) if style != "fenced" else None


def _defines(code: str) -> bool:
    """Return true if a block defines a function or a class that is no test."""
    try:
        names = [node.name for node in parse(code).body if isinstance(node, MADE)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # it will not run either way; of two broken blocks the last counts
        names = re.findall(r"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)", code, re.MULTILINE)
    return any(not name.lower().startswith("test") for name in names)


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
