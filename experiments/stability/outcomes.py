"""Read what became of the runs of a sweep: held-out accuracy by age, collapse, and what the plans
of this study and of ../accuracy need."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pandas as pd

from ssppo_jax.config import load_module
from ssppo_jax.files import read_json
from ssppo_jax.sweep.measure import read_courses

COURSES = load_module(str(Path(__file__).parents[1] / "overconfidence/courses.py"))
interval = COURSES.interval
FALL = 0.5  # of the highest accuracy so far: below it a run has collapsed


class Outcome(NamedTuple):
    """Hold one run, finished or failed."""

    objective: str  # with its gate where a label names one
    updates: int  # that learn from one rollout
    lag: int  # iterations between sampling and training
    rate: float
    seed: int
    ages: np.ndarray  # updates at which held-out accuracy is measured
    accuracy: np.ndarray  # [len(ages)] held out; 0 from where a run failed
    reward: float  # mean of the last rollout
    entropy: float  # least of its rollouts, nats a token
    ratio: float  # largest of a token
    eur: float  # effective update ratio, mean over updates
    failed: str  # why the package stopped it; empty if it did not

    @property
    def area(self) -> float:
        """Return the area under accuracy by update, over the number of updates."""
        return float(np.trapezoid(self.accuracy, self.ages) / self.ages[-1])

    @property
    def final(self) -> float:
        return float(self.accuracy[-1])

    @property
    def collapsed(self) -> bool:
        return bool(self.failed) or collapses(self.accuracy)

    @property
    def stable(self) -> bool:
        """Return true for a run that did not collapse and ends no worse than it began."""
        return not self.collapsed and self.final >= self.accuracy[0]


def collapses(accuracy: np.ndarray) -> bool:
    """Return true if an accuracy is below half of the highest before it."""
    highest = np.maximum.accumulate(accuracy)
    return bool((accuracy[1:] < FALL * highest[:-1]).any())


def ages_of(study: ModuleType) -> np.ndarray:
    """Return the updates at which a study's runs are evaluated."""
    return np.arange(0, study.UPDATES + 1, study.BETWEEN)


def by_age(course: pd.Series, ages: np.ndarray, updates: int) -> np.ndarray:
    """Return a course over iterations at some ages, 0 where the run did not come to."""
    return course.reindex(ages // updates, fill_value=0.0).to_numpy(float)


def read_outcomes(folder: Path, study: ModuleType) -> list[Outcome]:
    """Return the runs of a study's sweep that finished or failed.

    A run fails when the package stops it: a step is not finite, or sampler and trainer disagree on
    the log-probs of the same tokens. Such a run counts as collapsed, with accuracy 0 afterwards.
    """
    found = []
    for run in read_json(folder / "sweep.json")["runs"]:
        if run["status"] not in ("done", "failed"):
            continue
        point, ages = run["point"], ages_of(study)
        updates = study.UPDATES // point["train.iterations"]
        courses = read_courses(folder / Path(run["folder"]).name / "metrics.jsonl")
        found.append(
            Outcome(
                run["label"].partition(",")[0],
                updates,
                point.get("train.rollout_lag", 0),
                point["optimizer.learning_rate"],
                run["seed"],
                ages,
                by_age(courses["evaluate/accuracy"], ages, updates),
                float(courses["judge/reward/mean"].iloc[-1]),
                courses["score/entropy"].min(),
                courses["train/ratio/max"].max(),
                courses["train/effective_update_ratio"].mean(),
                run["reason"] if run["status"] == "failed" else "",
            )
        )
    return found
