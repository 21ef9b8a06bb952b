"""Another oracle for each part of a mixture.

--config.oracle.name=by_source
--config.oracle.members='{"math": {"oracle": "math_verify"}, "chat": {"oracle": "pairrm"}}'"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ssppo_jax.config import NonNegative, entry, setting_problems
from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles.links import preference_of
from ssppo_jax.oracles.protocol import TRIED, Oracle, checked, require_oracle, values_of, verdict_of
from ssppo_jax.types import Failed, Prompt, Verdict

EXAMPLE = """as in '{"math": {"oracle": "math_verify"}, "chat": {"oracle": "pairrm"}}'"""


def by_source(
    *, members: str = "{}", preferences: bool = False, temperature: NonNegative = 1.0
) -> Oracle:
    """Ask the oracle of each prompt's part of the mixture (`meta["mixture"]`).

    All prompts need the same kind of verdict: rewards, or with `preferences` the members'
    preferences and the Bradley-Terry link of the members' rewards. Parts of the members' verdicts
    are not kept: other prompts do not have them.

    Args:
        members: a JSON object {part's name: {"oracle": name, and that oracle's keywords}}.
        preferences: make preferences of rewards; needed as soon as one member gives preferences.
        temperature: of the link; 0: the higher reward wins.
    """
    made = _members(members)

    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        k, found = len(responses[0]), []
        for name, oracle in made.items():
            rows = [b for b, p in enumerate(prompts) if p.meta.get("mixture") == name]
            if rows:
                mine = [prompts[b] for b in rows], [responses[b] for b in rows]
                verdict = checked(oracle.ask(*mine), (len(rows), k))
                _check_kind(name, verdict, preferences)
                found.append((rows, verdict))
        shape = (len(prompts), k, k) if preferences else (len(prompts), k)
        values = np.full(shape, np.nan, np.float32)
        failed: list[Failed | None] = [None] * len(prompts)
        for rows, verdict in found:
            ours = (
                preference_of(verdict, temperature=temperature)
                if preferences
                else values_of(verdict)
            )
            for b, value, failure in zip(rows, ours, verdict.failed, strict=True):
                values[b], failed[b] = value, failure
        return verdict_of(values, tuple(failed), None)

    def check(prompts: list[Prompt]) -> None:
        strange = [p for p in prompts if p.meta.get("mixture") not in made]
        if strange:
            part = strange[0].meta.get("mixture")
            where = "is of no mixture" if part is None else f"is of part {part!r}"
            raise ConfigError(
                f"oracle by_source: prompt {strange[0].id!r} {where}; there are oracles for"
                f" {', '.join(made)}"
            )
        for name, oracle in made.items():
            mine = [p for p in prompts if p.meta["mixture"] == name]
            if mine:
                oracle.check(mine)
            if mine and not oracle.on_device:  # a model is asked first when there are responses
                _check_kind(name, oracle.ask(mine[:1], [list(TRIED)]), preferences)

    def place(mesh: Mesh) -> None:
        for oracle in made.values():
            oracle.place(mesh)

    return Oracle(
        ask,
        check,
        place,
        on_device=any(oracle.on_device for oracle in made.values()),
        at_once=min(oracle.at_once for oracle in made.values()),
    )


def _check_kind(part: str, verdict: Verdict, preferences: bool) -> None:
    if verdict.preference is not None and not preferences:
        raise ConfigError(
            f"oracle by_source: the oracle of {part!r} gives preferences; set"
            " --config.oracle.preferences=true, so that rewards of other parts become preferences"
        )


def _members(text: str) -> dict[str, Oracle]:
    from ssppo_jax.oracles import ORACLES  # the table this module is entered in

    try:
        given = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"oracle by_source: members is not JSON ({error}); {EXAMPLE}") from None
    if not isinstance(given, dict) or not given:
        raise ConfigError(f"oracle by_source: members must be a JSON object; {EXAMPLE}")
    made = {}
    for part, settings in given.items():
        if not isinstance(settings, dict) or "oracle" not in settings:
            raise ConfigError(f"oracle by_source: members: {part!r} names no oracle; {EXAMPLE}")
        settings = dict(settings)
        name: Any = settings.pop("oracle")
        problems = (
            ["it is by_source itself"]
            if name == "by_source"
            else setting_problems(ORACLES, name, settings)
        )
        if problems:
            told = (f"oracle by_source: members: {part!r}: {problem}" for problem in problems)
            raise ConfigError("\n".join(told))
        made[part] = require_oracle(entry(ORACLES, name)(**settings), name)
    return made


ORACLES = {"by_source": by_source}
