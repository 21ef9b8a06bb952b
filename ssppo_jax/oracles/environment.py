"""Rewards from the rubric of an environment, as the verifiers library calls it.

A function of the rubric judges one response. It asks by name for what it wants: prompt, completion,
answer, info, task, state, parser, or another column of the row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ssppo_jax.data.environment import load_environment
from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles.protocol import TRIED, Oracle
from ssppo_jax.oracles.python import call, first_absent, numbers
from ssppo_jax.types import Prompt, Verdict

GIVEN = ("prompt", "completion", "answer", "info", "task", "state", "parser")


def environment(*, environment: str = "") -> Oracle:
    """Add the weighted rewards of an environment's rubric; each function's reward is a part.

    The prompts come from data source `environment`. Each function is tried once before anything is
    sampled.

    Args:
        environment: path/to/file.py:NAME, as for the data source.

    Raises:
        ConfigError: no environment, or a function asks for what a single response does not have.
    """
    made = load_environment(environment)
    rubrics = getattr(made.rubric, "rubrics", None) or [made.rubric]  # a group has several
    members = [member for rubric in rubrics for member in _members(rubric)]
    if not members:
        raise ConfigError(f"{environment}: the rubric has no reward function")
    names = [_name(function) for function, _, _ in members]
    if len(set(names)) < len(names):
        names = [f"{name}_{i}" for i, name in enumerate(names, 1)]

    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        rewards = np.array(
            [
                [
                    [_score(environment, made, member, p, text) for text in group]
                    for p, group in zip(prompts, responses, strict=True)
                ]
                for member in members
            ]
        )
        weights = np.array([weight for _, weight, _ in members])
        total = (weights[:, None, None] * rewards).sum(0).astype(np.float32)
        parts = dict(zip(names, rewards.astype(np.float32), strict=True))
        return Verdict(None, total, (None,) * len(prompts), parts if len(members) > 1 else None)

    def check(prompts: list[Prompt]) -> None:
        columns = {key for p in prompts for key in p.meta}
        for function, _, _ in members:
            absent = first_absent(function, {*columns, *GIVEN})
            if absent is not None:
                raise ConfigError(
                    f"{environment}: reward function {_name(function)} asks for {absent!r}; a"
                    " function of one response may ask for:"
                    f" {', '.join([*GIVEN, *sorted(columns - set(GIVEN))])}"
                )
        ask(prompts[:1], [list(TRIED)])

    return Oracle(ask, check)


def _members(rubric: Any) -> list[tuple[Callable, float, Any]]:
    """Return (function, weight, parser) of a rubric; older releases have other names for both."""
    functions: list = getattr(rubric, "funcs", None) or getattr(rubric, "reward_funcs", None) or []
    weights = getattr(rubric, "weights", None) or getattr(rubric, "reward_weights", None)
    weights = weights or [1.0] * len(functions)
    if len(weights) != len(functions):
        raise ConfigError(f"a rubric has {len(functions)} functions and {len(weights)} weights")
    parser = getattr(rubric, "parser", None)
    return [(f, float(weight), parser) for f, weight in zip(functions, weights, strict=True)]


def _name(function: Callable) -> str:
    """Return a function's name; that of its kind, such as partial, where it has none."""
    return getattr(function, "__name__", type(function).__name__)


def _score(
    spec: str, environment: Any, member: tuple[Callable, float, Any], prompt: Prompt, text: str
) -> float:
    function, _, parser = member
    turns = [dict(turn) for turn in prompt.messages]
    given: dict[str, Any] = {"answer": "", "info": {}, "task": "default"} | prompt.meta
    given |= {"prompt": turns, "completion": [{"role": "assistant", "content": text}]}
    given["state"] = dict(given)
    given["parser"] = parser or getattr(environment, "parser", None)
    return numbers(spec, [call(spec, function, given)], 1)[0]


ORACLES = {"environment": environment}
