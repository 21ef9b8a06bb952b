"""Turn functions into parts of a config: keyword-only defaults are its keys.

A keyword's rule stands in its annotation: `decay: Unit = 0.99`, or `Annotated[int, positive]`."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, NamedTuple, get_type_hints

from ml_collections import ConfigDict

from ssppo_jax.config.nodes import flatten, leaf_of, nearest, of_type, parent_of, type_name
from ssppo_jax.config.rules import Rule
from ssppo_jax.config.tables import Table, choices, entry
from ssppo_jax.config.user_code import OWN
from ssppo_jax.errors import ConfigError


class Key(NamedTuple):
    path: str
    default: Any
    meaning: str
    rule: Rule | None = None


class Component(NamedTuple):
    """Describe a node that selects a function from a table: `<path>.name` plus the function's
    keywords.

    Keys of the run may stand in the same node; they stay when another function is chosen.
    """

    path: str
    table: Mapping[str, Callable]
    default: str
    meaning: str


def keyword_defaults(function: Callable) -> dict[str, Any]:
    """Return a function's keyword-only parameters that have a default: its hyper-parameters."""
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }


def keyword_rules(function: Callable) -> dict[str, Rule]:
    """Return the rule of every keyword whose annotation carries one, as `Unit` does."""
    names = keyword_defaults(function)
    try:
        hints = get_type_hints(function, include_extras=True) if names else {}
    except Exception as error:  # whatever an annotation of a user's function can raise
        name = getattr(function, "__qualname__", repr(function))
        raise ConfigError(
            f"the annotations of {name} cannot be read: {error}; import what they name, or write"
            " plain types such as float"
        ) from error
    found = {name: getattr(hints.get(name), "__metadata__", ()) for name in names}
    return {name: rules[0] for name, rules in found.items() if rules}


def keyword_meanings(function: Callable) -> dict[str, str]:
    """Read the `name: meaning` lines of the `Args:` section of a Google-style docstring."""
    doc = inspect.getdoc(function) or ""
    section = re.split(r"\n(?=\S)", doc.partition("Args:\n")[2])[0]
    found, current = {}, None
    for line in textwrap.dedent(section).splitlines():
        match = re.match(r"(\w+)(?: \([^)]*\))?: (.*)", line)
        if match:
            current = match[1]
            found[current] = match[2].strip()
        elif current and line.strip():
            found[current] += " " + line.strip()
    return found


def component(table: Mapping[str, Callable], name: str, /, **overrides) -> ConfigDict:
    """Return a node with `name` and the function's keyword defaults, some of them overridden.

    Raises:
      ConfigError: no such name, or no such keyword; the nearest one is named.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{name!r} is no name; allowed: {choices(table)}")
    if isinstance(table, Table):
        table.enter(name)  # a file that changed is read again where it is chosen
    function = entry(table, name)
    defaults = keyword_defaults(function)
    check_keywords(name, function)
    unknown = [k for k in overrides if k not in defaults]
    if unknown:
        raise ConfigError(
            f"{name} takes no {unknown[0]!r}; {nearest(unknown[0], defaults)}it takes:"
            f" {', '.join(defaults)}"
        )
    for keyword, value in overrides.items():
        default = defaults[keyword]
        if not of_type(value, default):
            raise ConfigError(
                f"{name} takes {keyword}={value!r}: expected {type_name(default)}, as in"
                f" {default!r}"
            )
    return ConfigDict({"name": name, **defaults, **overrides}).lock()


def check_keywords(name: str, function: Callable) -> None:
    """Check that every setting of a function can be a key of a config.

    Raises:
      ConfigError: a setting has no default, or is not keyword-only.
    """
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty:
            raise ConfigError(
                f"{name}: its keyword {p.name!r} has no default, so it cannot be a key of a config;"
                f" give it one in the function, as in {p.name}: float = 1.0"
            )
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty and OWN.fullmatch(name):
            raise ConfigError(
                f"{name}: {p.name!r} is not keyword-only, so it is no key of a config; put *,"
                f" before it, as in (..., *, {p.name}={p.default!r})"
            )


def by_hand(
    config: ConfigDict,
    keys: Iterable[Key],
    components: Iterable[Component],
    overrides: Container[str] = (),
) -> list[str]:
    """List what a config file sets that it cannot: values of another kind than the default, such as
    None, and names of components that are not chosen by `select`. What an override replaces may be
    of any kind."""
    problems, flat = [], flatten(config)
    expected = {key.path: key.default for key in keys}
    for c in components:
        node = parent_of(config, c.path)[leaf_of(c.path)]
        expected[f"{c.path}.name"] = c.default
        if node.name is None:
            continue
        try:
            check_keywords(node.name, entry(c.table, node.name))
            wanted = keyword_defaults(c.table[node.name])
        except ConfigError as error:
            problems.append(f"{c.path}={node.name}: {error}")
            continue
        if lacking := [name for name in wanted if name not in node]:
            problems.append(
                f"{c.path}.name={node.name!r} is set by hand, so its keywords"
                f" ({', '.join(lacking)}) are missing; write"
                f' select(config, "{c.path}", "{node.name}"), of ssppo_jax.schema'
            )
        expected |= {f"{c.path}.{name}": wanted[name] for name in wanted if name in node}
    return problems + [
        f"{path}={flat[path]!r}: expected {type_name(default)}, as in {default!r}"
        for path, default in expected.items()
        if path not in overrides and not of_type(flat[path], default)
    ]


def call_kwargs(table: Mapping[str, Callable], node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that a component node holds for its function."""
    return {name: node[name] for name in keyword_defaults(entry(table, node["name"]))}


def bind(table: Mapping[str, Callable], node: Mapping[str, Any]) -> Callable:
    """Return the function that a component node selects, with the configured keywords bound.

    This is the one place where a configured keyword reaches its function.
    """
    return functools.partial(entry(table, node["name"]), **call_kwargs(table, node))


def build(keys: Iterable[Key], components: Iterable[Component]) -> ConfigDict:
    """Return a locked config with every key at its default."""
    config = ConfigDict()
    for c in components:
        parent_of(config, c.path, create=True)[leaf_of(c.path)] = component(
            c.table, c.default
        ).unlock()
    for key in keys:
        parent_of(config, key.path, create=True)[leaf_of(key.path)] = key.default
    return config.lock()


def choose(
    config: ConfigDict, path: str, table: Mapping[str, Callable], name: str, /, **overrides
) -> None:
    """Put a component with its own defaults at `path`; keep the run's keys in that node."""
    node, parent = component(table, name, **overrides), parent_of(config, path)
    old = parent[leaf_of(path)]
    replaced = {"name", *keyword_defaults(table[old.name])}
    with node.unlocked():
        node.update({key: value for key, value in old.items() if key not in replaced})
    with parent.unlocked():
        del parent[leaf_of(path)]
        parent[leaf_of(path)] = node


def assign(config: ConfigDict, components: Iterable[Component], path: str, value: Any) -> None:
    """Set one key; the name of a component chooses it with its own defaults."""
    chosen = next((c for c in components if path == f"{c.path}.name"), None)
    if chosen is None:
        parent_of(config, path)[leaf_of(path)] = value
    elif flatten(config)[path] != value:
        choose(config, chosen.path, chosen.table, value)
