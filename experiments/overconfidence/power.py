"""How many seeds the study needs, from the pilot.

    python experiments/overconfidence/power.py runs/overconfidence-pilot

A paired, two-sided t-test at 5%: the chance to see a true difference of the late judged win rate,
by the noncentral t distribution, for the pilot's spread between seeds and for its upper 80%
bound."""

import sys
from pathlib import Path

import numpy as np
from courses import Courses, late, power, read_sweep
from scipy.stats import chi2

SIZES = (3, 5, 8, 10)


def main(folder: Path) -> None:
    runs = read_sweep(folder)
    for label in runs:
        if label.endswith(": SPPO"):
            tell(label.removesuffix("SPPO"), runs)


def tell(rate: str, runs: Courses) -> None:
    """Print the outcomes at one rate, and the power that their spread gives."""
    sppo, s_sppo = runs[f"{rate}SPPO"], runs[f"{rate}S-SPPO"]
    seeds = sorted(sppo.keys() & s_sppo.keys())
    for label, own in (("SPPO", sppo), ("S-SPPO", s_sppo)):
        print(f"{rate}{label}, late judged win rate: {[round(late(own[s]), 3) for s in seeds]}")
    differences = [late(s_sppo[s]) - late(sppo[s]) for s in seeds]
    spread = float(np.std(differences, ddof=1))
    upper = spread * ((len(seeds) - 1) / chi2.ppf(0.2, len(seeds) - 1)) ** 0.5
    print(f"difference {np.mean(differences):.3f}, spread between seeds {spread:.3f}\n")
    print("| true difference | spread | " + " | ".join(f"n = {n}" for n in SIZES) + " |")
    print("|" + " --- |" * (2 + len(SIZES)))
    for difference in (0.1, 0.2, 0.4):
        for s in (spread, upper):
            cells = " | ".join(f"{power(difference, s, n):.2f}" for n in SIZES)
            print(f"| {difference} | {s:.3f} | {cells} |")
    print()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
