"""Another oracle for each part of a mixture.

--config.oracle.name=by_source
--config.oracle.members='{"math": {"oracle": "math_verify"}, "chat": {"oracle": "pairrm"}}'"""

from __future__ import annotations

import json

import numpy as np

from ssppo_jax.config import NonNegative
from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles.links import preference_of
from ssppo_jax.oracles.named import build_member
from ssppo_jax.oracles.protocol import (
    TRIED,
    Oracle,
    asking,
    checked,
    concatenated,
    take_rows,
    values_of,
    verdict_of,
)
from ssppo_jax.types import Prompt, Verdict

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

    def values(part: str, verdict: Verdict) -> np.ndarray:
        """Return what all verdicts must be: preferences, or rewards."""
        if preferences:
            return preference_of(verdict, temperature=temperature)
        if verdict.preference is not None:
            raise ConfigError(
                f"oracle by_source: the oracle of {part!r} gives preferences; set"
                " --config.oracle.preferences=true, so that rewards of other parts become"
                " preferences"
            )
        return values_of(verdict)

    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        found: list[Verdict] = []
        order: list[int] = []
        for name, oracle in made.items():
            rows = [b for b, p in enumerate(prompts) if p.meta.get("mixture") == name]
            if rows:
                mine = [prompts[b] for b in rows], [responses[b] for b in rows]
                verdict = checked(oracle.ask(*mine), (len(rows), len(responses[0])))
                found.append(verdict_of(values(name, verdict), verdict.failed, None))
                order += rows
        if len(order) < len(prompts):
            check(prompts)
        return take_rows(concatenated(found), np.argsort(order))

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
                values(name, oracle.ask(mine[:1], [list(TRIED)]))

    return asking(made.values(), ask, check)


def _members(text: str) -> dict[str, Oracle]:
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
        own = {key: value for key, value in settings.items() if key != "oracle"}
        made[part] = build_member("by_source", f"members: {part!r}", settings["oracle"], own)
    return made


ORACLES = {"by_source": by_source}
