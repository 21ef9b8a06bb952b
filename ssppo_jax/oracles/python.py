"""Rewards from functions of the user's own, in the signature that TRL's trainers call.

    def reward(prompts, completions, **columns) -> list[float | None]

    --config.oracle.name=python --config.oracle.function=mine.py:reward

`prompts` and `completions` have one entry for each response. `columns` are the fields of the rows
beside the prompt, such as `answer`, one entry for each response too."""

from __future__ import annotations

import asyncio
import collections
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ssppo_jax.config import load_function, told_by_line
from ssppo_jax.errors import ConfigError, UserError
from ssppo_jax.oracles.protocol import TRIED, Oracle
from ssppo_jax.types import Failed, Prompt, Verdict

GIVEN = ("prompts", "completions")
# What TRL gives beside these and the columns, and an oracle here does not see.
ABSENT = ("completion_ids", "trainer_state", "log_extra", "log_metric")


def python(
    *,
    function: str = "",
    weights: tuple[float, ...] = (1.0,),
    conversational: bool = False,
) -> Oracle:
    """Add the rewards of the user's functions, sum_i w_i r_i, over the functions that give one.

    A function gives None where it does not apply, as in TRL. A response to which none applies fails
    its prompt. With several functions each reward is a part under the function's name. Each
    function is tried once before anything is sampled, on an empty response and a short one.

    Args:
        function: path/to/file.py:name, or several with commas.
        weights: one for each function (TRL's reward_weights), or one for all.
        conversational: prompts and completions are lists of turns, as TRL gives them for
          conversational data; false: the last user turn and the response as texts.

    Raises:
        ConfigError: no function, no such file, or a number of weights that does not fit.
    """
    specs = [spec.strip() for spec in function.split(",") if spec.strip()]
    twice = [spec for spec, count in collections.Counter(specs).items() if count > 1]
    if twice:
        raise ConfigError(f"oracle python: {twice[0]} is named twice; weights make it count more")
    if not specs:
        raise ConfigError(
            "oracle python: name a function: --config.oracle.function=path/to/file.py:FUNCTION"
        )
    if len(weights) not in (1, len(specs)):
        raise ConfigError(
            f"oracle python: weights={weights} for {len(specs)} functions; give one for each"
        )
    functions = {spec: load_function(spec) for spec in specs}
    scale = np.broadcast_to(np.asarray(weights, np.float64), len(specs))

    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        k = len(responses[0])
        flat = [(p, text) for p, group in zip(prompts, responses, strict=True) for text in group]
        table = np.array([_called(spec, f, flat, conversational) for spec, f in functions.items()])
        rewards = table.reshape(len(specs), len(prompts), k)  # NaN: does not apply
        applies = ~np.isnan(rewards)
        total = np.where(applies, scale[:, None, None] * rewards, 0.0).sum(0)
        missing = ~applies.any(0).all(1)
        total[missing] = np.nan
        failed = tuple(Failed("no reward function applies") if m else None for m in missing)
        if len(specs) == 1:
            return Verdict(None, total.astype(np.float32), failed)
        names = [spec.rpartition(":")[2] for spec in specs]
        unique = names if len(set(names)) == len(names) else specs
        found = np.where(applies, rewards, 0.0).astype(np.float32)
        return Verdict(
            None, total.astype(np.float32), failed, dict(zip(unique, found, strict=True))
        )

    def check(prompts: list[Prompt]) -> None:
        for spec, made in functions.items():
            _check_signature(spec, made, {key for p in prompts for key in p.meta})
        ask(prompts[:1], [list(TRIED)])

    return Oracle(ask, check)


def _check_signature(spec: str, function: Callable, columns: set[str]) -> None:
    """Raise ConfigError for a parameter that no column of the data gives."""
    absent = first_absent(function, {*columns, *GIVEN})
    if absent is not None:
        known = "an oracle here does not see it" if absent in ABSENT else "no row has such a field"
        raise ConfigError(
            f"oracle python: {spec} asks for {absent!r}, and {known}; it may ask for:"
            f" {', '.join([*GIVEN, *sorted(columns)])}"
        )


def _called(
    spec: str, function: Callable, flat: list[tuple[Prompt, str]], conversational: bool
) -> list[float]:
    """Return a function's reward of each response; NaN where it gives None."""
    columns = sorted({key for prompt, _ in flat for key in prompt.meta})
    given: dict[str, Any] = {key: [p.meta.get(key) for p, _ in flat] for key in columns}
    if conversational:
        given["prompts"] = [[dict(turn) for turn in p.messages] for p, _ in flat]
        given["completions"] = [[{"role": "assistant", "content": text}] for _, text in flat]
    else:
        given["prompts"] = [p.text for p, _ in flat]
        given["completions"] = [text for _, text in flat]
    return numbers(spec, call(spec, function, given), len(flat))


def first_absent(function: Callable, given: set[str]) -> str | None:
    """Return the first parameter that a function needs and that is not given."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return next((p.name for p in named if p.default is p.empty and p.name not in given), None)


def call(spec: str, function: Callable, given: dict[str, Any]) -> Any:
    """Call a user's function, which may be asynchronous, with as much as it takes of what is given.

    Raises:
        UserError: it raised something; names the file's line.
    """
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        given = {key: value for key, value in given.items() if key in parameters}
    with told_by_line(spec, "for which a response may be any text, also an empty one"):
        found = function(**given)
        return asyncio.run(found) if inspect.iscoroutine(found) else found


def numbers(spec: str, found: Any, count: int) -> list[float]:
    """Return rewards as floats, NaN for None.

    Raises:
        UserError: it is no list of `count` numbers.
    """
    if not isinstance(found, (list, tuple, np.ndarray)) or len(found) != count:
        size = f" of {len(found)}" if hasattr(found, "__len__") else ""
        raise UserError(
            f"{spec} returned a {type(found).__name__}{size}; it must return a list of {count}"
            " numbers, one for each completion"
        )
    for one in found:
        if one is not None and not isinstance(one, (int, float, np.number, np.bool_)):
            raise UserError(
                f"{spec} returned {one!r} in its list; a reward is a number, or None where the"
                " function does not apply"
            )
    values = [math.nan if one is None else float(one) for one in found]
    wrong = [x for x, one in zip(values, found, strict=True) if one is not None and x - x != 0]
    if wrong:
        raise UserError(
            f"{spec} returned {wrong[0]}; a reward is a finite number, or None where the function"
            " does not apply"
        )
    return values


ORACLES = {"python": python}
