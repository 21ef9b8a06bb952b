"""Find and name the keys of a config, and raise all that is wrong with them at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from ssppo_jax.errors import ConfigError


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value} of every leaf."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def parent_of(config: ConfigDict, path: str, create: bool = False) -> ConfigDict:
    """Return the node that holds the last part of a path."""
    node = config
    for part in path.split(".")[:-1]:
        if create and part not in node:
            node[part] = ConfigDict()
        node = node[part]
    return node


def leaf_of(path: str) -> str:
    """Return the last part of a path."""
    return path.rpartition(".")[2]


def nearest(given: str, known: Iterable[str]) -> str:
    """Return "did you mean 'NAME'? " of the known name nearest to a given one, or ""."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""


def shown(value: Any) -> str:
    """Return a value as the command line takes it."""
    return value if isinstance(value, str) else repr(value).replace(" ", "")


def type_name(value: Any) -> str:
    """Return what a value's type is called in a message."""
    return {float: "a number", int: "a whole number", tuple: "a list"}.get(
        type(value), type(value).__name__
    )


def of_type(value: Any, default: Any) -> bool:
    """Return whether a value may take a default's place: a whole number is a number, no switch is
    either, and anything may take the place of None."""
    if default is None:
        return True
    if isinstance(default, tuple) and isinstance(value, tuple):
        return all(of_type(one, default[0]) for one in value if default)
    kinds = (int, float) if isinstance(default, float) else type(default)
    return isinstance(value, kinds) and isinstance(value, bool) == isinstance(default, bool)


def raise_problems(problems: list[str]) -> None:
    """Raise one error that lists every problem.

    Raises:
      ConfigError: when there is any.
    """
    if problems:
        raise ConfigError(
            f"{len(problems)} problem(s) in the configuration:\n"
            + "\n".join("  " + p for p in problems)
        )
