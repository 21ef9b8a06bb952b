"""Mix the prompts of several sources in given shares.

    --config.data.source.name=mixture
    --config.data.source.parts='[{"name": "math", "source": "jsonl", "path": "gsm8k.jsonl",
    "prompt_field": "question", "weight": 2}, {"name": "chat", "source": "hf", "weight": 1, ...}]'

`meta["mixture"]` of a prompt is the name of its part; oracle `by_source` chooses by it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from typing import Any

from ssppo_jax.config import entry, setting_problems
from ssppo_jax.data.framing import UNFRAMED, framed, template_problem
from ssppo_jax.errors import ConfigError
from ssppo_jax.types import Prompt

log = logging.getLogger(__name__)

EXAMPLE = """as in '[{"source": "quickstart"}, {"source": "jsonl", "path": "mine.jsonl"}]'"""


def mixture(*, parts: str = "[]") -> list[Prompt]:
    """Read several sources. With weights, each gives its share of as many prompts as there are for
    all of them; the rest is left out and counted.

    Which prompts are left out depends on their ids alone. A prompt's id begins with its part's
    name.

    Args:
        parts: a JSON list of {"source": name, "name", "weight", "system_prompt", "few_shot",
          "prompt_template", and that source's own keywords}. Weights: all or none.

    Raises:
        ConfigError: a part that is not such an object, an unknown source or keyword, or weights
          that leave a source without a prompt. DataError: as the sources.
    """
    given = _parts(parts)
    weights = {name: part.pop("weight", None) for name, part in given.items()}
    if len({weight is None for weight in weights.values()}) > 1:
        raise ConfigError("data source mixture: give every part a weight, or none")
    prompts = {name: _read(name, part) for name, part in given.items()}
    shares = {name: weight for name, weight in weights.items() if weight is not None}
    return [p for name, some in _in_shares(prompts, shares).items() for p in some]


def _in_shares(
    prompts: dict[str, list[Prompt]], weights: dict[str, float]
) -> dict[str, list[Prompt]]:
    """Leave out prompts until the numbers are as the weights say."""
    if not weights:
        return prompts
    unit = min(len(prompts[name]) / weight for name, weight in weights.items())
    kept = {}
    for name, some in prompts.items():
        count = math.floor(unit * weights[name] + 1e-9)
        if not count:
            raise ConfigError(
                f"data source mixture: with these weights {name!r} gives no prompt; raise its"
                " weight"
            )
        chosen = sorted(some, key=lambda p: hashlib.sha256(p.id.encode()).digest())[:count]
        ids = {p.id for p in chosen}
        kept[name] = [p for p in some if p.id in ids]
        log.info("mixture: %d of %d prompts of %s", count, len(some), name)
    return kept


def _read(name: str, part: dict[str, Any]) -> list[Prompt]:
    """Read one part, frame its prompts, and name them after it."""
    from ssppo_jax.data import GIVEN, SOURCES  # the tables this module is entered in

    settings = {key: part.pop(key, value) for key, value in UNFRAMED.items()}
    source = part.pop("source", None)
    problems = [
        f"{key}={value!r}: must be {wrong}"
        for key, value in settings.items()
        if (wrong := _wrong_frame(key, value))
    ]
    problems += (
        ["a mixture holds no mixture"]
        if source == "mixture"
        else setting_problems(SOURCES, source, part)
    )
    if not problems and GIVEN.get(source, False):
        problems = [f"{source!r} brings responses, and those to a mixture's prompts are sampled"]
    if problems:
        raise ConfigError(f"data source mixture: part {name!r}: {'; '.join(problems)}")
    found = framed(entry(SOURCES, source)(**part), settings)
    return [
        dataclasses.replace(p, id=f"{name}/{p.id}", meta=p.meta | {"mixture": name}) for p in found
    ]


def _wrong_frame(key: str, value: Any) -> str | None:
    """Return what a part's own template, system prompt or examples must be, if they are not."""
    if not isinstance(value, str):
        return "a text"
    return template_problem(value) if key == "prompt_template" else None


def _parts(text: str) -> dict[str, dict[str, Any]]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"data source mixture: parts is not JSON ({error}); {EXAMPLE}") from None
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise ConfigError(f"data source mixture: parts must be a JSON list of objects; {EXAMPLE}")
    named: dict[str, dict[str, Any]] = {}
    for part in given:
        name = str(part.pop("name", part.get("source")))
        weight = part.get("weight")
        if name in named:
            raise ConfigError(
                f"data source mixture: two parts are named {name!r}; give each a name of its own,"
                f' as in {{"source": "{part.get("source")}", "name": "chat", ...}}'
            )
        if weight is not None and not (isinstance(weight, (int, float)) and 0 < weight < math.inf):
            raise ConfigError(f"data source mixture: weight of {name!r} is {weight!r}; above 0")
        named[name] = part
    return named


SOURCES = {"mixture": mixture}
