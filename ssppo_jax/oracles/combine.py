"""Several oracles as one: weighted sums, and gates that a response must pass before later members
count.

    --config.oracle.name=combine
    --config.oracle.members='[{"oracle": "sentiment", "margin": 0.3}, {"oracle": "length", "target":
    30}]'

A member is {"oracle": NAME, "weight": 1, "at_least": none, "margin": none, and that oracle's own
keywords}."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, TypeVar

import numpy as np

from ssppo_jax.config import NonNegative
from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles.links import preference_of
from ssppo_jax.oracles.named import build_member
from ssppo_jax.oracles.protocol import Oracle, asking, checked, first_failure, values_of
from ssppo_jax.types import Failed, Prompt, Verdict

D = TypeVar("D")


@dataclasses.dataclass(frozen=True)
class Member:
    """One oracle of a combination."""

    name: str
    oracle: Oracle
    weight: float
    at_least: float | None  # of its reward: below, later members do not count
    margin: float | None  # of its preference: |P - 1/2| above it decides alone


def combine(*, members: str = "[]", temperature: NonNegative = 1.0) -> Oracle:
    """Add the rewards of members, sum_i w_i r_i prod_{j<i} [r_j >= at_least_j], or average their
    preferences if one of them gives preferences.

    The gates make a lexicographic order: with at_least, what comes after a member counts only for
    responses that this member accepts. Preferences P are averaged with the weights, rewards among
    them through the Bradley-Terry link at `temperature`; where |P - 1/2| of a member with a
    `margin` exceeds it, that member decides alone (the first such). Each member's own reward is a
    part, as are its parts, under its name. A prompt that one member fails on fails.

    Args:
        members: a JSON list of {"oracle": name, "weight", "at_least", "margin", and the oracle's
          keywords}.
        temperature: of the Bradley-Terry link, where preferences and rewards meet.
    """
    made = _members(members)

    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        shape = (len(prompts), len(responses[0]))
        verdicts = [checked(member.oracle.ask(prompts, responses), shape) for member in made]
        failed = tuple(
            first_failure(
                failure and Failed(f"{member.name}: {failure.reason}")
                for member, failure in zip(made, row, strict=True)
            )
            for row in zip(*(v.failed for v in verdicts), strict=True)
        )
        rewards = all(v.reward is not None for v in verdicts)
        _check_use(made, rewards=rewards)
        if rewards:
            return Verdict(None, _summed(made, verdicts), failed, _parts(made, verdicts))
        return Verdict(_averaged(made, verdicts, temperature), None, failed)

    def check(prompts: list[Prompt]) -> None:
        for member in made:
            member.oracle.check(prompts)

    return asking([member.oracle for member in made], ask, check)


def _check_use(members: list[Member], *, rewards: bool) -> None:
    """Raise ConfigError for a gate among preferences or a margin among rewards: neither would have
    an effect."""
    what, why = (
        ("margin", "of preferences, and all members give rewards")
        if rewards
        else ("at_least", "of rewards, and a member gives preferences")
    )
    idle = [member.name for member in members if getattr(member, what) is not None]
    if idle:
        raise ConfigError(f"oracle combine: {what} of {idle[0]} is {why}")


def _summed(members: list[Member], verdicts: list[Verdict]) -> np.ndarray:  # [B,K]
    rewards = [values_of(verdict) for verdict in verdicts]
    total, open_to = np.zeros_like(rewards[0]), np.ones(rewards[0].shape, bool)
    for member, reward in zip(members, rewards, strict=True):
        total = total + np.where(open_to, member.weight * reward, 0.0)
        if member.at_least is not None:
            open_to &= reward >= member.at_least
    return total.astype(np.float32)


def _averaged(members: list[Member], verdicts: list[Verdict], temperature: float) -> np.ndarray:
    preferences = [preference_of(v, temperature=temperature).astype(np.float64) for v in verdicts]
    mean = np.average(preferences, axis=0, weights=[member.weight for member in members])
    # backwards, so that the first member that is sure has the last word
    for member, p in reversed(list(zip(members, preferences, strict=True))):
        if member.margin is not None:
            mean = np.where(np.abs(p - 0.5) > member.margin, p, mean)
    return mean.astype(np.float32)  # [B,K,K]


def _parts(members: list[Member], verdicts: list[Verdict]) -> dict[str, np.ndarray]:
    parts: dict[str, np.ndarray] = {}
    for member, verdict in zip(members, verdicts, strict=True):
        parts[member.name] = values_of(verdict)
        parts |= {f"{member.name}/{name}": part for name, part in (verdict.parts or {}).items()}
    return parts


# ---- reading the members -------------------------------------------------------------------------


def _members(text: str) -> list[Member]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"oracle combine: members is not JSON ({error}); {_EXAMPLE}") from None
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise ConfigError(
            f"oracle combine: members must be a JSON list of objects, at least one; {_EXAMPLE}"
        )
    made = [_member(dict(one)) for one in given]
    names = [member.name for member in made]
    twice = sorted({name for name in names if names.count(name) > 1})
    both = any(m.at_least is not None and m.margin is not None for m in made)
    for wrong, why in (
        (twice, f"members named {', '.join(twice)} more than once; give each oracle once"),
        (both, "at_least is of rewards and margin of preferences; give a member one of them"),
        (not sum(member.weight for member in made) > 0, "the weights must not all be 0"),
    ):
        if wrong:
            raise ConfigError(f"oracle combine: {why}")
    return made


_EXAMPLE = 'as in \'[{"oracle": "math_verify"}, {"oracle": "length", "weight": 0.2}]\''


def _member(given: dict[str, Any]) -> Member:
    name = given.pop("oracle", None)
    weight = _number(given, "weight", 1.0, of=name)
    at_least = _number(given, "at_least", None, of=name, least=-math.inf)
    margin = _number(given, "margin", None, of=name)
    oracle = build_member("combine", "members", name, given)
    return Member(name, oracle, weight, at_least, margin)


def _number(given: dict, key: str, default: D, *, of: Any, least: float = 0.0) -> float | D:
    value = given.pop(key, default)
    if value is not default and not (isinstance(value, int | float) and least <= value < math.inf):
        raise ConfigError(
            f"oracle combine: {key} of {of} is {value!r}; it must be a finite number"
            + (f" >= {least:g}" if math.isfinite(least) else "")
        )
    return value


ORACLES = {"combine": combine}
