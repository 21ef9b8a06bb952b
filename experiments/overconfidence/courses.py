"""Read the courses of a sweep's finished runs, and estimate means and differences over seeds."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from scipy.stats import nct
from scipy.stats import t as student

from ssppo_jax import schema
from ssppo_jax.files import read_json
from ssppo_jax.sweep.measure import read_courses

LATE = 4  # evaluations at the end whose mean is the primary outcome
JUDGED = "evaluate/judge/win_rate"


class Interval(NamedTuple):
    """Hold a mean over seeds with its interval by Student's t (NaN bounds of one seed) and the
    p-value of an exact two-sided sign-flip test of 0."""

    mean: float
    low: float
    high: float
    n: int
    p: float

    def __str__(self) -> str:
        if self.n < 2:
            return f"{self.mean:.3f}" if self.n else "-"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


Courses = dict[str, dict[int, dict[str, pd.Series]]]  # [label][seed][phase/name]


def read_sweep(folder: Path) -> Courses:
    """Return the courses of the runs that have a result, by label and seed."""
    found: Courses = {}
    for run in read_json(folder / "sweep.json")["runs"]:
        own = folder / Path(run["folder"]).name
        runs = found.setdefault(run["label"], {})
        if (own / "result.json").is_file():
            runs[run["seed"]] = read_courses(own / "metrics.jsonl")
    return found


def settings_of(command: str | list[str]) -> ConfigDict:
    """Return the configuration of a run from its command in sweep.json."""
    arguments = shlex.split(command) if isinstance(command, str) else command
    flags = dict(part.removeprefix("--").split("=", 1) for part in arguments if "=" in part)
    return schema.load(
        flags["config"],
        {
            key.removeprefix("config."): value
            for key, value in flags.items()
            if key.startswith("config.")
        },
    )


def interval(values: list[float], level: float = 0.95) -> Interval:
    """Return the mean of one value a seed, with the interval that holds it at this level."""
    x = np.asarray(values, np.float64)
    if len(x) == 0:
        return Interval(np.nan, np.nan, np.nan, 0, np.nan)
    spread = x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else np.nan
    half = spread * student.ppf((1 + level) / 2, max(len(x) - 1, 1))
    flips = np.array(list(itertools.product((-1, 1), repeat=len(x))))
    p = float(np.mean(np.abs(flips @ x) >= abs(x.sum()) - 1e-9))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x), p)


def lines_of(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    ruled = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled) + "\n"


def power(difference: float, spread: float, n: int) -> float:
    """Return the chance that a paired, two-sided t-test at 5% sees a true difference."""
    shift, bound = difference / spread * n**0.5, student.ppf(0.975, n - 1)
    against = nct.cdf(-bound, n - 1, shift)  # NaN where it is too small for SciPy
    return float(nct.sf(bound, n - 1, shift) + np.nan_to_num(against))


def late(courses: dict[str, pd.Series], name: str = JUDGED) -> float:
    """Return the mean of the last `LATE` values."""
    return float(courses[name].to_numpy()[-LATE:].mean())


def falls(runs: dict[int, dict[str, pd.Series]], name: str = JUDGED) -> Interval:
    """Return how far the end lies below the peak: peak less the mean of the last `LATE` values.

    The largest of noisy values is too large. So the place of a seed's peak is where the mean of the
    other seeds is largest.
    """
    courses = {seed: run[name].to_numpy() for seed, run in runs.items()}
    if len(courses) < 2:
        return interval([])
    fallen = []
    for seed, course in courses.items():
        others = np.mean([c for s, c in courses.items() if s != seed], axis=0)
        fallen.append(course[int(np.argmax(others))] - course[-LATE:].mean())
    return interval(fallen)
