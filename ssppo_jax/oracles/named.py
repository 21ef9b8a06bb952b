"""Oracles named in one text, for keys that take any number of them.

    --config.eval.oracles=keywords,relevance
    --config.eval.oracles='["keywords", {"oracle": "length", "target": 30, "as": "brief"}]'

Each has a label, under which its numbers are logged: `as`, or else its name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ssppo_jax.config import entry, keyword_defaults, setting_problems
from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles.protocol import Oracle, require_oracle

TAKEN = ("mixture", "previous", "reference", "start")  # labels that name other things in a log
EXAMPLE = 'as in keywords,relevance or \'[{"oracle": "length", "target": 30}]\''


class Named(NamedTuple):
    """An oracle as it was written down."""

    label: str
    name: str
    settings: dict[str, Any]  # all its keywords


def read_named(text: str, table: Mapping[str, Callable]) -> list[Named]:
    """Read the oracles that a text names.

    Raises:
        ConfigError: no list, an unknown name or keyword, a bad value, or one label twice.
    """
    if text.lstrip().startswith(("[", "{")):
        try:
            given = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"not JSON ({error}); name oracles {EXAMPLE}") from None
    else:
        given = [name.strip() for name in text.split(",")] if text.strip() else []
    if not isinstance(given, list) or not all(isinstance(one, str | dict) for one in given):
        raise ConfigError(f"a list of names or objects is wanted; name oracles {EXAMPLE}")
    found = [_named({"oracle": one} if isinstance(one, str) else dict(one), table) for one in given]
    labels = [one.label for one in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ConfigError(f'two oracles are called {twice[0]}; name one with "as": "..."')
    return found


def build_named(text: str, table: Mapping[str, Callable]) -> dict[str, Oracle]:
    """Return the oracles that a text names, by their labels.

    Raises:
        ConfigError: as `read_named`, or an oracle cannot be made.
    """
    return {
        label: require_oracle(entry(table, name)(**settings), name)
        for label, name, settings in read_named(text, table)
    }


def build_member(of: str, where: str, name: Any, settings: dict[str, Any]) -> Oracle:
    """Return an oracle that stands among the `members` of another, `of`.

    Raises:
        ConfigError: an unknown name or keyword, a bad value, or `of` itself; says where.
    """
    from ssppo_jax.oracles import ORACLES  # the table that `of` is entered in

    problems = setting_problems(ORACLES, name, settings)
    if name == of:
        problems = [f"{of} cannot be its own member"]
    if problems:
        raise ConfigError("\n".join(f"oracle {of}: {where}: {problem}" for problem in problems))
    return require_oracle(entry(ORACLES, name)(**settings), name)


def _named(given: dict[str, Any], table: Mapping[str, Callable]) -> Named:
    name = given.pop("oracle", None)
    label = given.pop("as", str(name).rpartition(":")[2])
    problems = setting_problems(table, name, given)
    if problems:
        raise ConfigError("; ".join(problems))
    if not isinstance(label, str) or not re.fullmatch(r"[\w.-]+", label) or label in TAKEN:
        raise ConfigError(
            f'"as": {label!r} of {name}: a label is made of letters, digits, _ - and ., and is'
            f" none of {', '.join(TAKEN)}"
        )
    return Named(label, name, keyword_defaults(entry(table, name)) | given)
