"""The result of a benchmark: what it was, on which model, by which judge, and what came out.

result.json    settings, digests, versions, failures, metrics with intervals
grades.jsonl   a line for each question: answers, token counts, replies, grade
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssppo_jax import __version__
from ssppo_jax.benchmark.contract import Benchmark, Graded
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.evaluate import Estimate
from ssppo_jax.files import read_json, read_records, to_json, write_json, write_records
from ssppo_jax.types import Failed

RESULT, GRADES = "result.json", "grades.jsonl"
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy", "transformers", "tokenizers", "math-verify",
            "alpaca-eval", "lm_eval", "scikit-learn")  # fmt: skip


class Result(NamedTuple):
    """A result folder, read."""

    folder: Path
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def protocol(self) -> dict[str, Any]:
        return self.record["protocol"]

    @property
    def metrics(self) -> dict[str, Estimate]:
        return {name: _estimate(e) for name, e in self.record["metrics"].items()}

    def grades(self) -> dict[str, dict[str, Any]]:
        """Return the line of each question, by id."""
        path = self.folder / GRADES
        return {row["id"]: row for row in read_records(path)} if path.is_file() else {}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are here."""
    found = {"python": platform.python_version(), "ssppo_jax": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_result(
    folder: Path,
    benchmark: Benchmark,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Estimate],
    graded: Sequence[Graded],
    *,
    notes: Sequence[str] = (),
    seconds: float = 0.0,
    rows: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Write result.json and grades.jsonl; return the result."""
    failed = Counter(g.grade.reason for g in graded if isinstance(g.grade, Failed))
    failed.update(row["failed"] for row in rows if "failed" in row)
    tokens = [n for g in graded for n in g.tokens]
    characters = [len(text) for g in graded for text in g.answers]
    result = dict(settings) | {
        "headline": benchmark.headline,
        "paired": benchmark.paired or benchmark.headline,
        "metrics": {name: e._asdict() for name, e in metrics.items()},
        "questions": len(graded) or len(rows),
        "failures": sum(failed.values()),
        "failure_reasons": dict(failed.most_common()),
        "length": {
            "tokens_mean": float(np.mean(tokens)) if tokens else None,
            "characters_mean": float(np.mean(characters)) if characters else None,
        },
        "notes": list(notes),
        "versions": versions(),
        "seconds": round(seconds, 1),
    }
    write_records(folder / GRADES, [*map(_row, graded), *rows])
    write_json(folder / RESULT, result)
    return result


def _row(one: Graded) -> dict[str, Any]:
    """Return the line of a graded question."""
    return {
        "id": one.question.id,
        "turns": list(one.question.turns),
        "answers": one.answers,
        "tokens": one.tokens,
        "replies": [reply.text for reply in one.replies],
        **({"failed": one.grade.reason} if isinstance(one.grade, Failed) else {"grade": one.grade}),
    }


def read_result(folder: Path) -> Result:
    """Read a result folder.

    Raises:
        DataError: it holds no result of a benchmark.
    """
    path = folder / RESULT
    if not path.is_file():
        raise DataError(f"{folder}: no {RESULT}; give the folder of a finished benchmark or run")
    record = read_json(path)
    if not isinstance(record, dict) or not {"protocol", "metrics", "model"} <= record.keys():
        raise DataError(f"{path}: not the result of a benchmark")
    return Result(folder, record)


def _estimate(fields: Mapping[str, Any]) -> Estimate:
    mean, low, high = (
        float("nan") if fields[name] is None else float(fields[name])
        for name in ("mean", "low", "high")
    )
    return Estimate(mean, low, high, int(fields["n"]))


def different(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """List the settings in which two protocols differ."""
    return [
        f"{key}: {to_json(a.get(key))} and {to_json(b.get(key))}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


SETTINGS = "settings.json"


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write settings.json into a new folder, or check that the folder began with these very ones.

    Raises:
        ConfigError: it holds another benchmark's answers, or another model's; all differences are
          listed.
    """
    path = folder / SETTINGS
    own = json.loads(to_json(_fixed(settings)))
    if path.is_file():
        found = read_json(path)
        wrong = different(found, own) if isinstance(found, dict) else ["settings.json: no object"]
        if wrong:
            raise ConfigError(
                f"{folder} holds answers to other settings:\n  "
                + "\n  ".join(wrong)
                + "\nGive --output a new folder, or go on with the settings of this one"
            )
        return
    if (folder / RESULT).is_file() or (folder / "metrics.jsonl").is_file():
        raise ConfigError(f"{folder} holds another run; give --output a folder of its own")
    write_json(path, own)


def _fixed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that answers depend on: not the judge nor what it compares them with."""
    graded_by = ("judge", "references")
    protocol = {k: v for k, v in settings["protocol"].items() if k not in graded_by}
    return {"model": settings["model"], "seed": settings["seed"], **protocol}
