"""Tables and the figure of finished runs; it may be run while a sweep is at work.

    python experiments/stability/summarise.py DIR GRID JUDGED [FRESH]

writes DIR/tables.md and DIR/stability.svg."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
from outcomes import Outcome, ages_of, interval, read_outcomes

from ssppo_jax.config import load_module

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STUDY = load_module(str(Path(__file__).parent / "config.py"))
AGES = ages_of(STUDY)
By = dict[tuple[str, int], dict[int, Outcome]]  # [objective, updates][seed]


def by_objective(runs: list[Outcome]) -> By:
    found: By = {}
    for one in runs:
        found.setdefault((one.objective, one.updates), {})[one.seed] = one
    order = {name: i for i, name in enumerate(STUDY.OBJECTIVES)}
    return dict(sorted(found.items(), key=lambda item: (item[0][1], order[item[0][0]])))


def of_grid(runs: list[Outcome]) -> str:
    """Return area and final accuracy by rate, and the rates that are stable."""
    rates = sorted({o.rate for o in runs})
    head = ["", *(f"{rate:g}" for rate in rates), "stable"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for objective in STUDY.OBJECTIVES:
        own = {o.rate: o for o in runs if o.objective == objective}
        cells = [_cell(own[rate]) if rate in own else "-" for rate in rates]
        stable = ", ".join(f"{rate:g}" for rate in rates if rate in own and own[rate].stable)
        lines.append(f"| {objective} | {' | '.join(cells)} | {stable} |")
    return "\n".join(lines) + "\n"


def _cell(one: Outcome) -> str:
    return f"{one.area:.3f} ({one.final:.2f}){', collapsed' * one.collapsed}"


def of_judged(runs: list[Outcome]) -> str:
    """Return each objective's area and final accuracy with SSPO's differences, and what else the
    plan asks for."""
    table = by_objective(runs)
    lines = [
        "| | updates a rollout | runs | area | SSPO's less it | final accuracy | SSPO's less it |"
        " collapsed |",
        "|" + " --- |" * 8,
    ]
    for (objective, updates), own in table.items():
        sspo = table.get(("sspo", updates), {})
        cells = [objective, str(updates), str(len(own))]
        for name in ("area", "final"):
            cells.append(str(interval([getattr(o, name) for o in own.values()])))
            cells.append("" if objective == "sspo" else less(sspo, own, name))
        cells.append(f"{sum(o.collapsed for o in own.values())} of {len(own)}")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "| | updates a rollout | reward of the last rollout | SSPO's less it | entropy floor, nats"
        " | largest token ratio | EUR, mean |",
        "|" + " --- |" * 7,
    ]
    for (objective, updates), own in table.items():
        sspo = table.get(("sspo", updates), {})
        cells = [str(interval([o.reward for o in own.values()]))]
        cells.append("" if objective == "sspo" else less(sspo, own, "reward"))
        cells.append(str(interval([o.entropy for o in own.values()])))
        ratios = [o.ratio for o in own.values()]
        cells.append(f"{np.median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})")
        cells.append(str(interval([o.eur for o in own.values()])))
        lines.append(f"| {objective} | {updates} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def less(a: dict[int, Outcome], b: dict[int, Outcome], name: str) -> str:
    """Write the mean difference over the seeds that both have, with interval and p-value."""
    found = interval([getattr(a[s], name) - getattr(b[s], name) for s in sorted(a.keys() & b)])
    return f"{found}, p = {found.p:.3f}" if found.n > 1 else str(found)


def of_staleness(runs: list[Outcome]) -> str:
    """Return the area that staleness costs each objective: that of the freshest runs less that of
    the stalest."""
    table = by_objective(runs)
    fresh, stale = STUDY.STALENESS[0], STUDY.STALENESS[-1]
    cost = {
        objective: {
            seed: table[objective, fresh][seed].area - table[objective, stale][seed].area
            for seed in sorted(table[objective, fresh].keys() & table[objective, stale])
        }
        for objective in STUDY.OBJECTIVES
        if (objective, fresh) in table and (objective, stale) in table
    }
    lines = [
        f"| | area at {fresh} less area at {stale} | its cost less SSPO's |",
        "|" + " --- |" * 3,
    ]
    for objective, own in cost.items():
        sspo = cost.get("sspo", {})
        both = interval([own[s] - sspo[s] for s in sorted(own.keys() & sspo)])
        against = "" if objective == "sspo" else f"{both}, p = {both.p:.3f}"
        lines.append(f"| {objective} | {interval(list(own.values()))} | {against} |")
    return "\n".join(lines) + "\n"


def draw(grid: list[Outcome], judged: list[Outcome], path: Path) -> None:
    """Draw accuracy by update, with a band of a standard error, and the grid."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    axes[1].sharey(axes[0])
    for axis, updates in zip(axes, reversed(STUDY.STALENESS), strict=False):
        for n, objective in enumerate(STUDY.OBJECTIVES):
            own = by_objective(judged).get((objective, updates), {})
            if own:
                y = np.stack([o.accuracy for o in own.values()])
                error = y.std(0, ddof=1) / len(y) ** 0.5 if len(y) > 1 else np.zeros(len(AGES))
                axis.plot(AGES, y.mean(0), color=f"C{n}", label=objective, marker="o", ms=3)
                low, high = y.mean(0) - error, y.mean(0) + error
                axis.fill_between(AGES, low, high, color=f"C{n}", alpha=0.15, lw=0)
        axis.set(title=f"held-out accuracy, {updates} updates a rollout", xlabel="updates")
    for n, objective in enumerate(STUDY.OBJECTIVES):
        found = sorted((o.rate, o.area) for o in grid if o.objective == objective)
        axes[2].plot(*zip(*found, strict=True), color=f"C{n}", marker="o", ms=3)
    axes[2].set(title="area by rate, one seed", xscale="log", xlabel="learning rate")
    for axis in axes:
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9)
    plt.rcParams["svg.hashsalt"] = "stability"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(output: Path, grid: Path, *judged: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    tried = read_outcomes(grid, STUDY)
    counted = [o for folder in judged if folder.is_dir() for o in read_outcomes(folder, STUDY)]
    parts = [f"Grid, seed {STUDY.SEEDS[0]}: area (final accuracy)\n", of_grid(tried)]
    parts += [f"At {STUDY.COMMON:g}\n", of_judged(counted), of_staleness(counted)]
    text = "\n".join(parts)
    (output / "tables.md").write_text(text, encoding="utf-8")
    draw(tried, counted, output / "stability.svg")
    print(text)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
