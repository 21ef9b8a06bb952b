"""Held-out win rate and entropy by iteration, mean and standard error over seeds: the table of the
README.

python experiments/degradation/course.py runs/degradation
"""

import sys
from pathlib import Path

import numpy as np

from ssppo_jax.files import read_json
from ssppo_jax.sweep.measure import read_courses

SOURCES = ("evaluate/win_rate", "score/entropy")


def main(workdir: Path) -> None:
    runs = read_json(workdir / "sweep.json")["runs"]
    for label in dict.fromkeys(run["label"] for run in runs):
        folders = [workdir / Path(run["folder"]).name for run in runs if run["label"] == label]
        courses = [read_courses(folder / "metrics.jsonl") for folder in folders]
        for source in SOURCES:
            values = np.stack([course[source] for course in courses])
            error = values.std(0, ddof=1) / len(values) ** 0.5
            cells = (f"{mean:.2f} ± {e:.2f}" for mean, e in zip(values.mean(0), error, strict=True))
            print(f"{label} | {source} | {' | '.join(cells)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
