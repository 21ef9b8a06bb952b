"""Read a quantity that a run logged, written "phase/name[:how]", and make one number of it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ssppo_jax.errors import DataError
from ssppo_jax.runs.metrics import read_metrics

PHASES = ("generate", "judge", "score", "train", "iteration", "evaluate")  # that `train` logs under
HOW: dict[str, Callable[[np.ndarray], float]] = {
    "last": lambda y: y[-1],
    "first": lambda y: y[0],
    "mean": np.mean,
    "min": np.min,
    "max": np.max,
    "gain": lambda y: y[-1] - y[0],
}


class Measure(NamedTuple):
    """`how` to make one number of the records of `phase` that hold `name`."""

    phase: str
    name: str
    how: str = "last"

    @property
    def source(self) -> str:
        return f"{self.phase}/{self.name}"

    def __str__(self) -> str:
        return self.source if self.how == "last" else f"{self.source}:{self.how}"


class Measured(NamedTuple):
    """The numbers of a run for each measure, by the measure's text."""

    values: dict[str, float | None]  # None: see `missing`
    missing: dict[str, str]  # why there is no value


def parse(text: object) -> Measure:
    """Return the measure that a text names: "train/ratio/max:max" is ("train", "ratio/max", "max").

    Raises:
      ValueError: says what is wrong and what is allowed.
    """
    if not isinstance(text, str):
        raise ValueError('must be text, such as "evaluate/win_rate" or "train/loss:mean"')
    source, colon, how = text.partition(":")
    phase, slash, name = source.partition("/")
    if not (slash and name) or phase not in PHASES:
        meant = f"; evaluations are evaluate/{name or 'win_rate'}" if phase == "eval" else ""
        phases = ", ".join(PHASES)
        raise ValueError(f'must be "phase/name" with one of the phases {phases}{meant}')
    if colon and how not in HOW:
        raise ValueError(f"after the colon stands one of {', '.join(HOW)}")
    return Measure(phase, name, how or "last")


def read_courses(path: Path) -> dict[str, pd.Series]:
    """Return the course of every "phase/name" in a log: values by step or iteration.

    The index is the step in the phase `train`, the iteration in others. A value that was not
    finite is NaN.

    Raises:
      DataError: there is no log, or a line of it is not JSON.
    """
    if not path.is_file():
        raise DataError(f"{path.name} is missing")
    rows = []
    for record in read_metrics(path):
        x = record["step" if record["phase"] == "train" else "iteration"]
        for name, value in (record.get("wall", {}) | record["values"]).items():
            rows.append((f"{record['phase']}/{name}", x, value))
    frame = pd.DataFrame(rows, columns=["source", "x", "value"]).astype({"value": float})
    courses = frame.set_index("x").groupby("source", sort=False).value
    return {str(source): course for source, course in courses}


def measure_run(folder: Path, measures: Iterable[Measure]) -> Measured:
    """Return every measure of a finished run; None with the reason where there is none."""
    values: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    try:
        courses, broken = read_courses(folder / "metrics.jsonl"), ""
    except DataError as error:
        courses, broken = {}, str(error)
    for measure in measures:
        value, why = (None, broken) if broken else _value(measure, courses)
        values[str(measure)] = value
        if why:
            missing[str(measure)] = why
    return Measured(values, missing)


def _value(measure: Measure, courses: dict[str, pd.Series]) -> tuple[float | None, str]:
    """Return the number, or None and why."""
    if measure.source not in courses:
        near = _nearest(measure, courses)
        return None, "not logged" + (f"; did you mean {near!r}?" if near else "")
    y = courses[measure.source].to_numpy()
    if measure.how == "gain" and len(y) < 2:
        return None, "logged only once, so it has no gain"
    value = float(HOW[measure.how](y))  # a NaN among the values is never averaged away
    return (value, "") if math.isfinite(value) else (None, "not finite")


def _nearest(measure: Measure, logged: Iterable[str]) -> str | None:
    """Return the same name in another phase, or one much like it in the same phase."""
    for phase in PHASES:
        if f"{phase}/{measure.name}" in logged:
            return f"{phase}/{measure.name}"
    names = [
        source.partition("/")[2] for source in logged if source.startswith(f"{measure.phase}/")
    ]
    alike = difflib.get_close_matches(measure.name, names, n=1)
    return f"{measure.phase}/{alike[0]}" if alike else None
