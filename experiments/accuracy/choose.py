"""Choose each objective's rate from the grid, by the rule of PLAN.md.

    python experiments/accuracy/choose.py runs/accuracy

prints the table of the grid and the rates. A rate at an end of the grid is marked: the grid is then
extended by PLAN.md's rule."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ssppo_jax.config import load_module

HERE = Path(__file__).parent
STUDY = load_module(str(HERE / "config.py"))
OUTCOMES = load_module(str(HERE.parent / "stability/outcomes.py"))


def by_rate(runs: list, objective: str) -> dict[float, list]:
    """Return an objective's runs by rate, in the order of rates."""
    found: dict[float, list] = {}
    for one in sorted((o for o in runs if o.objective == objective), key=lambda o: o.rate):
        found.setdefault(one.rate, []).append(one)
    return found


def area(runs: list) -> float:
    return float(np.mean([o.area for o in runs]))


def stable(runs: list) -> bool:
    return all(o.stable for o in runs)


def best(rates: dict[float, list]) -> float:
    """Return the rate of the largest mean area among those at which all runs are stable."""
    allowed = {rate: runs for rate, runs in rates.items() if stable(runs)} or rates
    return max(allowed, key=lambda rate: (round(area(allowed[rate]), 3), -rate))


def table(runs: list) -> str:
    """Return mean area and final accuracy by rate, the stable range and the best rate."""
    rates = sorted({o.rate for o in runs})
    head = ["", *(f"{rate:g}" for rate in rates), "stable", "best"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for objective in STUDY.OBJECTIVES:
        own = by_rate(runs, objective)
        if not own:
            continue
        cells = [_cell(own[rate]) if rate in own else "-" for rate in rates]
        steady = [rate for rate in own if stable(own[rate])]
        span = f"{steady[0]:g} to {steady[-1]:g}" if steady else "none"
        chosen = best(own)
        end = " (an end)" if chosen in (min(own), max(own)) else ""
        lines.append(f"| {objective} | {' | '.join(cells)} | {span} | {chosen:g}{end} |")
    return "\n".join(lines) + "\n"


def _cell(runs: list) -> str:
    final = np.mean([o.final for o in runs])
    collapsed = sum(o.collapsed for o in runs)
    fallen = f", {collapsed} collapsed" if collapsed else ""
    return f"{area(runs):.3f} ({final:.2f}){fallen}"


if __name__ == "__main__":
    print(table(OUTCOMES.read_outcomes(Path(sys.argv[1]), STUDY)))
