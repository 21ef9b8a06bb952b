"""Apply `a.b=text` from the command line, check values by their rules, and write the help."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from ssppo_jax.config.components import (
    Component,
    Key,
    choose,
    component,
    keyword_defaults,
    keyword_meanings,
    keyword_rules,
)
from ssppo_jax.config.nodes import flatten, leaf_of, nearest, of_type, parent_of, shown, type_name
from ssppo_jax.config.rules import Hidden, OneOf, fraction, non_negative, positive, unit
from ssppo_jax.config.tables import choices, known
from ssppo_jax.config.user_code import renamed
from ssppo_jax.errors import ConfigError

# what ast.literal_eval raises at a text that is no literal
NO_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


def override(
    config: ConfigDict,
    overrides: Mapping[str, str],
    components: Iterable[Component],
    elsewhere: Mapping[str, str] | None = None,
    chosen: Callable[[ConfigDict, str, str], None] | None = None,
) -> list[str]:
    """Apply `a.b=text` overrides in place and return every problem found.

    Component names are applied first (a newly named component starts from its own defaults), then
    the other keys, so the order on the command line does not matter. `elsewhere` says where other
    frameworks' names of a key stand here; `chosen(config, path, name)` chooses a component where
    that takes more than its own node."""
    by_path = {c.path: c for c in components}
    problems, rest, refused = [], {}, []
    loss_first = sorted(overrides, key=lambda path: path not in ("loss", "loss.name"))
    for path in loss_first:  # a loss may bring other keys
        text, base = overrides[path], path.removesuffix(".name")
        if base not in by_path:
            rest[path] = text
            continue
        if path != base and base in overrides:
            problems.append(
                f"--config.{path}={text}: --config.{base}={overrides[base]} is given too; leave one"
                " out"
            )
            continue
        try:
            if chosen is None:
                choose(config, base, by_path[base].table, text)
            else:
                chosen(config, base, text)
        except ConfigError as e:
            problems.append(f"--config.{path}={text}: {e}")
            refused.append(base + ".")
    known = flatten(config)
    for path, text in rest.items():
        if path.startswith(tuple(refused)):  # its keywords are not known; its name is reported
            continue
        if path not in known:
            hint = nearest(path, known) or "train --config=FILE --help lists them"
            hint = _of_another(config, by_path, path) or hint
            if elsewhere and leaf_of(path) in elsewhere:
                hint = f"here it is {elsewhere[leaf_of(path)]}"
            if renamed(path) is not None:
                hint = (
                    f"it is now --config.{renamed(path)}={text}" if renamed(path) else "it is gone"
                )
            problems.append(f"--config.{path}: no such key; {hint.strip()}")
            continue
        try:
            value = parse_value(text, known[path])
        except ValueError as e:
            problems.append(f"--config.{path}={text}: {e}")
            continue
        parent_of(config, path)[leaf_of(path)] = value
    return problems


def _of_another(config: ConfigDict, by_path: Mapping[str, Component], path: str) -> str:
    """Say which components of a kind have this keyword, where the chosen one has not."""
    base, _, keyword = path.rpartition(".")
    if base not in by_path:
        return ""
    node = parent_of(config, path)
    table, own = by_path[base].table, [key for key in node if key != "name"]
    having = [n for n in known(table) if n in table and keyword in keyword_defaults(table[n])]
    if not having:
        near = nearest(keyword, own).replace("'", f"'{base}.", 1)
        return near or f"{base}.name={node.name} takes: {', '.join(own) or 'no keys'}"
    return (
        f"{base}.name={node.name} does not take it, {', '.join(having)}"
        f" {'do' if len(having) > 1 else 'does'}; it takes: {', '.join(own) or 'no keys'}"
    )


def parse_value(text: str, default: Any) -> Any:
    """Read command-line text as the type of the default it replaces.

    Raises:
      ValueError: says what is expected.
    """
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in words:
            raise ValueError("expected true or false")
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except NO_LITERAL:
        value = _number_or_text(text)
    if isinstance(default, tuple):
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if all(isinstance(v, float) for v in default):
            values = tuple(float(v) if type(v) is int else v for v in values)
        if {type(v) for v in values} <= {type(v) for v in default}:
            return values
        raise ValueError(f"expected a list such as {shown(default)}")
    if not of_type(value, default):
        raise ValueError(f"expected {type_name(default)}, as in {default!r}")
    try:
        return float(value) if isinstance(default, float) else value
    except OverflowError:
        raise ValueError("expected a number that is not so large") from None


def _number_or_text(text: str):
    try:
        return float(text)  # nan and inf are read here, so that the range check can name them
    except ValueError:
        return text


def rule_problems(
    config: ConfigDict, keys: Iterable[Key], components: Iterable[Component]
) -> list[str]:
    """List the values outside their rule. Every number must be finite."""
    rules = {key.path: key.rule for key in keys}
    for c in components:
        name = parent_of(config, c.path)[leaf_of(c.path)].name
        rules |= {
            f"{c.path}.{keyword}": rule for keyword, rule in keyword_rules(c.table[name]).items()
        }
    problems = []
    for path, value in flatten(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            problems.append(f"{path}={value!r}: must be a finite number")
            continue
        rule = rules.get(path)
        if (
            rule is None
            or value is None
            or (isinstance(value, str) and rule in (positive, non_negative, unit, fraction))
        ):
            continue
        allowed = rule(value)
        if allowed:
            given = "(not shown)" if isinstance(rule, Hidden) else repr(value)
            problems.append(f"{path}={given}: must be {allowed}")
    return problems


def setting_problems(table: Mapping[str, Callable], name: Any, given: dict[str, Any]) -> list[str]:
    """List what is wrong with the name and the keywords of a function in a table."""
    try:
        node = component(table, name, **given)
    except ConfigError as error:
        return [str(error)]
    path = name.rpartition(":")[2]  # of a function in a file, its own name
    return rule_problems(ConfigDict({path: node}), (), (Component(path, table, name, ""),))


def help_text(keys: Iterable[Key], components: Iterable[Component], config: ConfigDict) -> str:
    """Return every key with its meaning and its value in `config`."""
    flat, lines = flatten(config), []
    for key in keys:
        allowed = [str(x) for x in key.rule.allowed] if isinstance(key.rule, OneOf) else []
        told = all(word in key.meaning for word in allowed)
        meaning = key.meaning if told else f"{key.meaning}: {', '.join(allowed)}"
        lines.append(f"  --config.{key.path}={shown(flat[key.path])}\n        {meaning}")
    for c in components:
        name = flat[f"{c.path}.name"]
        lines.append(f"  --config.{c.path}.name={name}\n        {c.meaning}: {choices(c.table)}")
        meanings = keyword_meanings(c.table[name])
        for keyword in keyword_defaults(c.table[name]):
            value = flat[f"{c.path}.{keyword}"]
            lines.append(
                f"  --config.{c.path}.{keyword}={shown(value)}\n       "
                f" {meanings.get(keyword, '')}".rstrip()
            )
    return "\n".join(lines)
