"""How large a difference the study can see, from the pilot.

    python experiments/stability/power.py runs/stability-pilot
    python experiments/stability/power.py runs/accuracy-pilot experiments/accuracy/config.py

A paired, two-sided t-test at 5%: the chance to see a true difference of areas between SSPO and
GRPO, by the noncentral t distribution, for the pilot's spread between seeds and for its upper 80%
bound."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from outcomes import COURSES, read_outcomes
from scipy.stats import chi2

from ssppo_jax.config import load_module

SIZES, DIFFERENCES = (3, 5, 8), (0.02, 0.05, 0.1, 0.2)


def main(folder: Path, study: str = str(Path(__file__).parent / "config.py")) -> None:
    runs = read_outcomes(folder, load_module(study))
    for o in sorted(runs, key=lambda o: (o.rate, o.objective, o.seed)):
        course = " ".join(f"{x:.3f}" for x in o.accuracy)
        print(
            f"{o.objective}, {o.updates} updates, {o.rate:g}, seed {o.seed}: {course}; area"
            f" {o.area:.3f}{', collapsed' * o.collapsed}; entropy {o.entropy:.3f}, largest ratio"
            f" {o.ratio:.3g}, EUR {o.eur:.3f}"
        )
    for rate in sorted({o.rate for o in runs}):
        area = {(o.objective, o.seed): o.area for o in runs if o.rate == rate}
        seeds = sorted({seed for _, seed in area if ("sspo", seed) in area})
        differences = [area["sspo", s] - area["grpo", s] for s in seeds if ("grpo", s) in area]
        if len(differences) > 1:
            tell(rate, np.array(differences))


def tell(rate: float, differences: np.ndarray) -> None:
    """Print the differences at one rate, and the power that their spread gives."""
    n, spread = len(differences), float(np.std(differences, ddof=1))
    upper = spread * ((n - 1) / chi2.ppf(0.2, n - 1)) ** 0.5
    print(
        f"\n{rate:g}: SSPO less GRPO {differences.mean():.3f}, spread between seeds {spread:.3f}\n"
    )
    print("| true difference | spread | " + " | ".join(f"n = {size}" for size in SIZES) + " |")
    print("|" + " --- |" * (2 + len(SIZES)))
    for difference in DIFFERENCES:
        for s in (spread, upper):
            cells = " | ".join(f"{COURSES.power(difference, s, size):.2f}" for size in SIZES)
            print(f"| {difference} | {s:.3f} | {cells} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
