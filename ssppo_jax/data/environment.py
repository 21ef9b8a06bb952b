"""Environments as the verifiers library has them: prompts and their check in one object.

    environment.dataset   rows with "prompt" (or "question") and columns such as "answer", "info"
    environment.rubric    .funcs, reward functions of one response, and .weights

A `get_dataset()` is asked where there is one. Environments of one turn are read; the object may be
the library's own, or any with these parts."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from ssppo_jax.config import expanded, load_object, told_by_line
from ssppo_jax.errors import ConfigError
from ssppo_jax.files import file_digest


def load_environment(spec: str) -> Any:
    """Return the environment that path/to/file.py:NAME means or makes.

    Raises:
        ConfigError: no such object, it lacks a part, or it takes several turns or tools.
    """
    if not spec:
        raise ConfigError(
            "name the environment for both: --config.data.source.environment=mine.py:NAME"
            " --config.oracle.environment=mine.py:NAME"
        )
    load_object(spec)  # tells what is wrong with it
    made = _made(spec, file_digest(expanded(spec.rpartition(":")[0])))
    lacking = [part for part in ("dataset", "rubric") if getattr(made, part, None) is None]
    if "dataset" in lacking and hasattr(made, "get_dataset"):
        lacking.remove("dataset")
    if lacking:
        raise ConfigError(
            f"{spec}: the {type(made).__name__} has no {' and no '.join(lacking)}; an environment"
            " has both"
        )
    if getattr(made, "max_turns", 1) != 1:
        raise ConfigError(
            f"{spec}: the environment takes several turns (max_turns={made.max_turns}), and one is"
            " sampled here; give one of a single turn (max_turns=1)"
        )
    for part in ("oai_tools", "tools", "tool_defs"):
        if getattr(made, part, None):
            raise ConfigError(f"{spec}: the environment has {part}, and no tool is called here")
    return made


@functools.lru_cache(maxsize=8)  # source and oracle share one, which may have loaded a data set
def _made(spec: str, digest: str) -> Any:
    given = load_object(spec)
    if not callable(given) or hasattr(given, "rubric"):
        return given
    with told_by_line(spec, "making the environment"):
        return given()


def rows_of(environment: Any) -> Iterator[dict]:
    """Yield the rows of an environment's data set with their prompt under "prompt"."""
    get = getattr(environment, "get_dataset", None)
    system = getattr(environment, "system_prompt", None)
    for given in get() if get else environment.dataset:
        row = dict(given)
        if "prompt" not in row and "question" in row:
            question = row.pop("question")
            row["prompt"] = [{"role": "user", "content": question}]
            if system:  # the library puts it before questions, not before whole prompts
                row["prompt"].insert(0, {"role": "system", "content": system})
        row.pop("example_id", None)  # the library's number of the row, no id of its content
        yield row
