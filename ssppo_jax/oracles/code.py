"""Verifiable rewards for code: the response's code passes the prompt's unit tests. Rewards [B,K]
with parts."""

from __future__ import annotations

import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.oracles.answers import said
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.oracles.sandbox.run import OUTCOMES, Limits, Outcome, run_tests
from ssppo_jax.types import Prompt, Verdict

FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
STYLES = ("auto", "fenced", "whole")
SANDBOXES = ("strict", "limits")
NO_CODE = "no_code"
AT_ONCE = 8  # prompts a call: between calls a run may stop


def code(
    *,
    code_style: str = "auto",
    partial: bool = False,
    timeout: float = 10.0,
    memory_mb: int = 1024,
    disk_mb: int = 16,
    workers: int = 2,
    sandbox: str = "strict",
) -> Oracle:
    """1 when the code in the response passes every test in meta["tests"], else 0; contained as
    `sandbox` describes.

    A prompt's tests are a Python snippet or a list of them (assertions, say), run one after the
    other behind the response's code. Parts: `accuracy`, `tests` (the share that passed), and one of
    `no_code`, `passed`, `failed`, `time`, `memory`, `output`, `disk`, `crash`. None is a failure of
    the oracle: the response is wrong.

    Args:
        code_style: fenced: the last ```python block (else the last block); whole: all of the text;
            auto: a block where there is one, else the text.
        partial: the share of tests passed as reward, in place of all or nothing.
        timeout: seconds for the code and all its tests.
        memory_mb: memory one response may have.
        disk_mb: what it may write.
        workers: responses run at a time.
        sandbox: strict, or limits alone where a system cannot do more and the code can be trusted.
    """
    _check_settings(
        code_style, timeout, sandbox, memory_mb=memory_mb, disk_mb=disk_mb, workers=workers
    )
    limits = Limits(timeout, memory_mb, disk_mb, sandbox == "strict")

    def one(task: tuple[Prompt, str]) -> tuple[str, float]:
        prompt, text = task
        found, tests = code_of(text, code_style), tests_of(prompt)
        outcome = (
            Outcome(NO_CODE, 0, "no code") if found is None else run_tests(found, tests, limits)
        )
        return outcome.outcome, outcome.passed / len(tests)

    def oracle(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
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

    oracle.check, oracle.at_once = _check_prompts, AT_ONCE
    return oracle


def code_of(text: str, style: str) -> str | None:
    """The code in a response, after its thinking; None where there is none."""
    spoken = said(text)
    blocks = FENCE.findall(spoken) if style != "whole" else []
    python = [
        block for language, block in blocks if language.lower() in ("python", "python3", "py")
    ]
    if blocks:
        return (python or [block for _, block in blocks])[-1]
    return (spoken if spoken.strip() else None) if style != "fenced" else None


def tests_of(prompt: Prompt) -> list[str]:
    tests = prompt.meta["tests"]
    return [tests] if isinstance(tests, str) else list(tests)


def _check_settings(code_style: str, timeout: float, sandbox: str, **counts: int) -> None:
    problems = []
    if code_style not in STYLES:
        problems.append(f"code_style={code_style!r} must be one of {', '.join(STYLES)}")
    if sandbox not in SANDBOXES:
        problems.append(f"sandbox={sandbox!r} must be one of {', '.join(SANDBOXES)}")
    if not 0 < timeout < math.inf:
        problems.append(f"timeout={timeout!r} must be above 0 seconds, and finite")
    problems += [f"{name}={n!r} must be at least 1" for name, n in counts.items() if n < 1]
    if problems:
        raise ConfigError("\n".join(f"oracle code: {problem}" for problem in problems))


def _check_prompts(prompts: list[Prompt]) -> None:
    def usable(tests) -> bool:
        many = [tests] if isinstance(tests, str) else tests
        return (
            isinstance(many, list | tuple)
            and bool(many)
            and all(isinstance(t, str) and t.strip() for t in many)
        )

    wrong = [p.id for p in prompts if not usable(p.meta.get("tests"))]
    if wrong:
        raise DataError(
            f"oracle code: prompt {wrong[0]!r} has no tests ({len(wrong)} of {len(prompts)}); give"
            ' every row of the data "tests": a Python snippet that raises when the code is wrong,'
            " or a list of them"
        )


ORACLES = {"code": code}
