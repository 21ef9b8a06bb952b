"""Provide the configuration machinery: keys, components by name, overrides, all errors at once.

A run's keys are written once, as `Key(path, default, meaning, rule)`. A *component* is a plain
function in a dict. `inspect` reads its keyword-only defaults as config defaults, so adding a
function adds its keys. A keyword's rule stands in its annotation: `decay: Unit = 0.99`, or
`Annotated[int, positive]`."""

from ssppo_jax.config.components import (
    Component,
    Key,
    assign,
    bind,
    build,
    by_hand,
    call_kwargs,
    choose,
    component,
    keyword_defaults,
    keyword_meanings,
)
from ssppo_jax.config.nodes import flatten, raise_problems
from ssppo_jax.config.overrides import help_text, override, rule_problems, setting_problems
from ssppo_jax.config.rules import (
    Hidden,
    NonNegative,
    Positive,
    Unit,
    fraction,
    increasing,
    iso_date,
    non_negative,
    one_of,
    positive,
    unit,
)
from ssppo_jax.config.tables import Table, constants, discover, entry, known
from ssppo_jax.config.user_code import (
    CONFIGS,
    OWN,
    config_names,
    expanded,
    load_config,
    load_function,
    load_module,
    load_object,
    place_of,
    run_file,
    told_by_line,
    user_files,
)

__all__ = [
    "CONFIGS",
    "OWN",
    "Component",
    "Hidden",
    "Key",
    "NonNegative",
    "Positive",
    "Table",
    "Unit",
    "assign",
    "bind",
    "build",
    "by_hand",
    "call_kwargs",
    "choose",
    "component",
    "config_names",
    "constants",
    "discover",
    "entry",
    "expanded",
    "flatten",
    "fraction",
    "help_text",
    "increasing",
    "iso_date",
    "keyword_defaults",
    "keyword_meanings",
    "known",
    "load_config",
    "load_function",
    "load_module",
    "load_object",
    "non_negative",
    "one_of",
    "override",
    "place_of",
    "positive",
    "raise_problems",
    "rule_problems",
    "run_file",
    "setting_problems",
    "told_by_line",
    "unit",
    "user_files",
]
