"""A quantity that a run logged, written "phase/name[:how]": its course in metrics.jsonl, and one
number made of it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssppo_jax.errors import DataError
from ssppo_jax.runs.metrics import read_metrics

PHASES = (
    "generate",
    "judge",
    "score",
    "train",
    "iteration",
    "evaluate",
)  # what `train` logs under; see its `_log`
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


class Course(NamedTuple):
    """One logged quantity over a run."""

    x: np.ndarray  # steps while training, iterations in other phases
    y: np.ndarray  # NaN where the run logged that it was not finite


class Measured(NamedTuple):
    """What a run gives for each measure, by the measure's text."""

    values: dict[str, float | None]  # None: see `missing`
    missing: dict[str, str]  # why there is no value


def parse(text: object) -> Measure:
    """ "train/ratio/max:max" -> Measure("train", "ratio/max", "max").

    Raises:
      ValueError: says what is wrong and what is allowed.
    """
    if not isinstance(text, str):
        raise ValueError('must be text, such as "evaluate/win_rate" or "train/loss:mean"')
    source, colon, how = text.partition(":")
    phase, slash, name = source.partition("/")
    if not (slash and name) or phase not in PHASES:
        raise ValueError(f'must be "phase/name" with one of the phases {", ".join(PHASES)}')
    if colon and how not in HOW:
        raise ValueError(f"after the colon stands one of {', '.join(HOW)}")
    return Measure(phase, name, how or "last")


def read_courses(path: Path, sources: Iterable[str]) -> tuple[dict[str, Course], set[str]]:
    """The course of each "phase/name" that the log holds, and every "phase/name" in it.

    Raises:
      DataError: there is no log, or a line of it is not JSON.
    """
    if not path.is_file():
        raise DataError(f"{path.name} is missing")
    points: dict[str, list[tuple[float, float]]] = {source: [] for source in sources}
    logged: set[str] = set()
    for record in read_metrics(path):
        phase, values = record["phase"], record.get("wall", {}) | record["values"]
        x = record["step" if phase == "train" else "iteration"]
        for name, value in values.items():
            logged.add(source := f"{phase}/{name}")
            if source in points:
                points[source].append((x, math.nan if value is None else value))
    found = {source: Course(*np.array(mine, float).T) for source, mine in points.items() if mine}
    return found, logged


def measure_run(folder: Path, measures: Iterable[Measure]) -> Measured:
    """Every measure of a finished run. One that cannot be had is None, with the reason; nothing is
    raised."""
    measures = tuple(measures)
    try:
        courses, logged = read_courses(folder / "metrics.jsonl", [m.source for m in measures])
    except DataError as error:
        return Measured({str(m): None for m in measures}, {str(m): str(error) for m in measures})
    found = {str(m): _value(m, courses.get(m.source), logged) for m in measures}
    return Measured(
        {text: value for text, (value, _) in found.items()},
        {text: why for text, (_, why) in found.items() if why},
    )


def _value(measure: Measure, course: Course | None, logged: set[str]) -> tuple[float | None, str]:
    """The number, or None and why."""
    if course is None:
        near = _nearest(measure, logged)
        return None, "not logged" + (f"; did you mean {near!r}?" if near else "")
    if measure.how == "gain" and len(course.y) < 2:
        return None, "logged only once, so it has no gain"
    value = float(HOW[measure.how](course.y))  # a NaN among the values is never averaged away
    return (value, "") if math.isfinite(value) else (None, "not finite")


def _nearest(measure: Measure, logged: set[str]) -> str | None:
    """The same name in another phase, or one much like it in the same phase."""
    elsewhere = [
        f"{phase}/{measure.name}" for phase in PHASES if f"{phase}/{measure.name}" in logged
    ]
    names = [
        source.partition("/")[2]
        for source in sorted(logged)
        if source.startswith(f"{measure.phase}/")
    ]
    alike = difflib.get_close_matches(measure.name, names, n=1)
    return next(iter(elsewhere + [f"{measure.phase}/{name}" for name in alike]), None)
