"""Make, choose, load and check the settings of a run.

`keys` lists every key, `between` holds the rules that span several, `functions` asks the functions
that a config names, and `pitfalls` says what may mislead. `base_config()` is the start of every
config file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ml_collections import ConfigDict

from ssppo_jax import config as cfg
from ssppo_jax.errors import ConfigError
from ssppo_jax.losses import COMPANIONS
from ssppo_jax.schema.between import problems_between
from ssppo_jax.schema.elsewhere import ELSEWHERE
from ssppo_jax.schema.functions import function_problems, gate_problems, ratio_gate_problems
from ssppo_jax.schema.keys import COMPONENTS, KEYS
from ssppo_jax.schema.pitfalls import cautions

__all__ = [
    "COMPONENTS",
    "ELSEWHERE",
    "KEYS",
    "base_config",
    "cautions",
    "check",
    "help_text",
    "load",
    "method_notes",
    "select",
]


def base_config() -> ConfigDict:
    """Return every key at its default, locked: a typo in a config file raises and names the nearest
    key.
    """
    return cfg.build(KEYS, COMPONENTS)


def select(config: ConfigDict, path: str, name: str, /, **overrides) -> None:
    """Choose a component in a config file, e.g. select(config, "loss", "dpo", beta=0.1).

    A loss brings the settings elsewhere that make it the published method (`losses.COMPANIONS`);
    lines after this one may change them."""
    tables = {c.path: c.table for c in COMPONENTS}
    if path not in tables:
        raise ConfigError(f"select(config, {path!r}, ...): choose one of {', '.join(tables)}")
    table = tables[path]
    before = _companions(config)
    cfg.choose(config, path, table, name, **overrides)
    if path == "loss":
        _bring_companions(config, before)


def _companions(config: ConfigDict) -> Mapping[str, Any]:
    """Return the keys outside the loss that belong to the chosen loss's method."""
    return cast(Mapping[str, Any], COMPANIONS.get(config.loss.name, {}))


def _bring_companions(config: ConfigDict, before: Mapping[str, Any]) -> None:
    """Set the keys that belong to the chosen loss's method; reset those that the former loss had
    set.
    """
    now, default, flat = _companions(config), cfg.flatten(base_config()), cfg.flatten(config)
    for path, value in before.items():
        if path not in now and flat[path] == value:
            cfg.assign(config, COMPONENTS, path, default[path])
    for path, value in now.items():
        if path not in cfg.flatten(config):
            raise ConfigError(
                f"COMPANIONS of {config.loss.name} sets {path!r}, which is no key of a config"
            )
        cfg.assign(config, COMPONENTS, path, value)


def method_notes(config: ConfigDict) -> list[str]:
    """Say which keys the loss has set, and which of them depart from the published method."""
    flat, name = cfg.flatten(config), config.loss.name
    wanted = _companions(config)
    kept = [f"{path}={value}" for path, value in wanted.items() if flat[path] == value]
    notes = [f"loss.name={name} brings " + " ".join(kept)] if kept else []
    return notes + [
        f"loss.name={name} with {path}={flat[path]} is not the published method, which has"
        f" {path}={value}"
        for path, value in wanted.items()
        if flat[path] != value
    ]


def load(spec: str, overrides: dict[str, str], devices: int | None = None) -> ConfigDict:
    """Load a config file with overrides and check it; batch and mesh too when `devices` is given.

    Raises:
      ConfigError: every problem with the file's own values and the overrides, at once.
    """
    config = cfg.load_config(spec)
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"--config={spec}: get_config() returns {type(config).__name__}; begin it with"
            " config = base_config(), and return that"
        )
    given = cfg.flatten(config)
    lacking = [path for key in KEYS if (path := key.path) not in given]
    lacking += [f"{c.path}.name" for c in COMPONENTS if f"{c.path}.name" not in given]
    if lacking:
        raise ConfigError(
            f"--config={spec}: get_config() leaves out {', '.join(lacking[:5])}"
            f"{', ...' if len(lacking) > 5 else ''}; begin it with config = base_config()"
        )
    cfg.raise_problems(cfg.by_hand(config, KEYS, COMPONENTS, overrides))
    problems = cfg.override(config, overrides, COMPONENTS, ELSEWHERE, chosen=select)
    problems += _value_problems(config) if devices is None else _problems(config, devices)
    cfg.raise_problems(problems)
    return config


def check(config: ConfigDict, devices: int) -> None:
    """Check everything that can be known before a compile: ranges, keywords, mesh and batch sizes.

    Raises:
      ConfigError: all problems at once.
    """
    cfg.raise_problems(_problems(config, devices))


def _value_problems(config: ConfigDict) -> list[str]:
    problems = cfg.rule_problems(config, KEYS, COMPONENTS)
    return problems + function_problems(config, problems)


def _problems(config: ConfigDict, devices: int) -> list[str]:
    problems = _value_problems(config)
    # gates can be called: their keywords are right
    gates = [] if problems else gate_problems(config) + ratio_gate_problems(config)
    return problems + problems_between(config, devices) + gates


def help_text(config: ConfigDict) -> str:
    """Return every key with its value in `config` and its meaning."""
    return cfg.help_text(KEYS, COMPONENTS, config)
