"""Rewards from the rubric of an environment, as the verifiers library calls it.

A function of the rubric judges one response. It asks by name for what it wants: prompt, completion,
answer, info, task, state, parser, or another column of the row."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from ssppo_jax.data.environment import load_environment
from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles.protocol import TRIED, Oracle
from ssppo_jax.oracles.python import call, numbers
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
    members = [member for rubric in _rubrics(made.rubric) for member in _members(rubric)]
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
            _check_signature(environment, function, columns)
        ask(prompts[:1], [list(TRIED)])

    return Oracle(ask, check)


def _rubrics(rubric: Any) -> list[Any]:
    """Return the rubrics of a group, or the one there is."""
    return list(getattr(rubric, "rubrics", None) or [rubric])


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


def _check_signature(spec: str, function: Callable, columns: set[str]) -> None:
    needed = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    absent = [name for name in needed if name not in columns and name not in GIVEN]
    if absent:
        raise ConfigError(
            f"{spec}: reward function {_name(function)} asks for {absent[0]!r}; a function of one"
            f" response may ask for: {', '.join([*GIVEN, *sorted(columns - set(GIVEN))])}"
        )


def _score(
    spec: str, environment: Any, member: tuple[Callable, float, Any], prompt: Prompt, text: str
) -> float:
    function, _, parser = member
    turns = [dict(turn) for turn in prompt.messages]
    given: dict[str, Any] = {"answer": "", "info": {}, "task": "default"} | prompt.meta
    given |= {"prompt": turns, "completion": [{"role": "assistant", "content": text}]}
    given["state"] = dict(given)
    given["parser"] = parser or getattr(environment, "parser", None)
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        given = {key: value for key, value in given.items() if key in parameters}
    return numbers(spec, [call(spec, function, given)], 1)[0]


ORACLES = {"environment": environment}
