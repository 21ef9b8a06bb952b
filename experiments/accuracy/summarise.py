"""Tables and the figure of finished runs; it may be run while a sweep is at work.

    python experiments/accuracy/summarise.py DIR GRID JUDGED [LAGGED] [FRESH] [GATES]

writes DIR/tables.md and DIR/accuracy.svg."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from choose import HERE, OUTCOMES, STUDY, area, by_rate, table

from ssppo_jax.config import load_module

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COURSES = load_module(str(HERE.parent / "overconfidence/courses.py"))
lines_of = COURSES.lines_of
AGES = OUTCOMES.ages_of(STUDY)
FRESH, STALE, LAGGED = STUDY.STALENESS
NAMES = {
    FRESH: f"{FRESH[0]} updates a rollout",
    STALE: f"{STALE[0]} updates a rollout",
    LAGGED: f"{LAGGED[0]} updates a rollout, an iteration old",
}
Runs = dict[str, dict[int, OUTCOMES.Outcome]]  # [objective][seed]


def of(runs: list, staleness: tuple[int, int], names: Sequence[str] = STUDY.OBJECTIVES) -> Runs:
    """Return the runs of one staleness, by objective and seed."""
    found: Runs = {}
    for name in names:
        own = [o for o in runs if (o.objective, o.updates, o.lag) == (name, *staleness)]
        found |= {name: {o.seed: o for o in own}} if own else {}
    return found


def mean(runs: dict, name: str) -> str:
    return str(COURSES.interval([getattr(o, name) for o in runs.values()]))


def less(sspo: dict, other: dict, name: str) -> str:
    """Write SSPO's advantage: the mean difference over the seeds of both, with its p-value."""
    seeds = sorted(sspo.keys() & other)
    found = COURSES.interval([getattr(sspo[s], name) - getattr(other[s], name) for s in seeds])
    return f"{found}, p = {found.p:.3f}" if found.n > 1 else str(found)


def of_accuracy(runs: Runs) -> str:
    """Return area and final accuracy of each objective, with SSPO's advantages."""
    sspo, rows = runs.get("sspo", {}), []
    for name, own in runs.items():
        rate = next(iter(own.values())).rate
        row = [name, f"{rate:g}", str(len(own)), mean(own, "area")]
        row.append("" if name == "sspo" else less(sspo, own, "area"))
        row.append(mean(own, "final"))
        row.append("" if name == "sspo" else less(sspo, own, "final"))
        rows.append([*row, f"{sum(o.collapsed for o in own.values())} of {len(own)}"])
    head = ["", "rate", "runs", "area", "SSPO's less it", "final accuracy", "SSPO's less it"]
    return lines_of([*head, "collapsed"], rows)


def of_training(runs: Runs) -> str:
    """Return what the updates did: entropy, ratios, EUR."""
    rows = []
    for name, own in runs.items():
        ratios = [o.ratio for o in own.values()]
        span = f"{np.median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})"
        rows.append([name, mean(own, "reward"), mean(own, "entropy"), span, mean(own, "eur")])
    head = ["", "reward of the last rollout", "entropy floor, nats", "largest token ratio", "EUR"]
    return lines_of(head, rows)


def of_staleness(runs: list) -> str:
    """Return the area that staleness costs each objective, from fresh to lagged; empty if a study
    has no such runs."""
    fresh, lagged, cost, rows = of(runs, FRESH), of(runs, LAGGED), {}, []
    if not fresh.keys() & lagged:
        return ""
    for name in fresh.keys() & lagged:
        seeds = sorted(fresh[name].keys() & lagged[name])
        cost[name] = {s: fresh[name][s].area - lagged[name][s].area for s in seeds}
    sspo = cost.get("sspo", {})
    for name in filter(cost.__contains__, STUDY.OBJECTIVES):
        own = cost[name]
        both = COURSES.interval([own[s] - sspo[s] for s in sorted(own.keys() & sspo)])
        against = "" if name == "sspo" else f"{both}, p = {both.p:.3f}"
        rows.append([name, str(COURSES.interval(list(own.values()))), against])
    head = ["", "area when fresh less area when lagged", "its cost less SSPO's"]
    return lines_of(head, rows)


def of_gates(runs: list) -> str:
    """Return the outcomes of SSPO's weight with other gates, beside GMPO and SSPO."""
    other = sorted({o.objective for o in runs} - set(STUDY.OBJECTIVES))
    if not other:
        return ""
    found, rows = of(runs, STALE, ("gmpo", "sspo", *other)), []
    for name, own in found.items():
        row = [name, str(len(own)), mean(own, "area")]
        row += [
            "" if first == name else less(found[first], own, "area") for first in ("gmpo", "sspo")
        ]
        rows.append([*row, f"{sum(o.collapsed for o in own.values())} of {len(own)}"])
    head = ["", "runs", "area", "GMPO's less it", "SSPO's less it", "collapsed"]
    return lines_of(head, rows) + "\n" + of_training(found)


def draw(grid: list, counted: list, path: Path) -> None:
    """Draw accuracy by update for each staleness, with a band of a standard error, and the grid."""
    there = {staleness: title for staleness, title in NAMES.items() if of(counted, staleness)}
    wide = 1 + len(there)
    figure, axes = plt.subplots(1, wide, figsize=(4 * wide, 4), layout="constrained", squeeze=False)
    axes = axes[0]
    for axis, (staleness, title) in zip(axes, there.items(), strict=False):
        axis.sharey(axes[0])
        for name, own in of(counted, staleness).items():
            y, colour = np.stack([o.accuracy for o in own.values()]), _colour(name)
            error = y.std(0, ddof=1) / len(y) ** 0.5 if len(y) > 1 else np.zeros(len(AGES))
            axis.plot(AGES, y.mean(0), color=colour, marker="o", ms=3)
            axis.fill_between(AGES, y.mean(0) - error, y.mean(0) + error, color=colour, alpha=0.15)
        axis.set(title=title, xlabel="updates")
    axes[0].set_ylabel("held-out accuracy")
    for name in STUDY.OBJECTIVES:
        rates = by_rate(grid, name)
        areas = [area(runs) for runs in rates.values()]
        axes[-1].plot(list(rates), areas, color=_colour(name), marker="o", ms=3, label=name)
    axes[-1].set(title="area by rate, two seeds", xscale="log", xlabel="learning rate")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=5, fontsize=9)
    plt.rcParams["svg.hashsalt"] = "accuracy"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _colour(objective: str) -> str:
    return f"C{STUDY.OBJECTIVES.index(objective)}"


def main(output: Path, grid: Path, *judged: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    tried = OUTCOMES.read_outcomes(grid, STUDY)
    folders = [folder for folder in judged if (folder / "sweep.json").is_file()]
    counted = [o for folder in folders for o in OUTCOMES.read_outcomes(folder, STUDY)]
    parts = [f"Grid, seeds {STUDY.SEEDS}: mean area (final accuracy)\n", table(tried)]
    for staleness, title in NAMES.items():
        runs = of(counted, staleness)
        parts += [f"{title}\n", of_accuracy(runs), of_training(runs)] if runs else []
    gates = of_gates(counted)
    parts += [of_staleness(counted), *(["Other gates\n", gates] if gates else [])]
    text = "\n".join(filter(None, parts))
    (output / "tables.md").write_text(text, encoding="utf-8")
    draw(tried, counted, output / "accuracy.svg")
    print(text)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
