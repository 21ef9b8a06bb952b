"""Tables and the figure of finished runs; it may be run while a sweep is at work.

    python experiments/smollm/summarise.py DIR PLAY SUMS

writes DIR/tables.md and DIR/smollm.svg. PLAY holds the folder second_turn too (`second_turn.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from ssppo_jax.config import load_module
from ssppo_jax.files import read_json

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COURSES = load_module(str(Path(__file__).parents[1] / "overconfidence/courses.py"))
interval, lines_of = COURSES.interval, COURSES.lines_of
EACH_TURN = {"u": "u", "commas": "commas", "distinct_2": "distinct-2"}
FIRST = 5  # seeds 1 to 5 were looked at before the others ran (PLAN.md, Changes)
SECOND_LOOK = 0.9706  # Pocock's rule for two looks
ITERATIONS = {"evaluate/judge/reward": "u, first turn", "evaluate/commas/reward": "commas"}


def told(values) -> str:
    found = interval(list(values))
    return f"{found}, p = {found.p:.3f}" if found.n > 1 else str(found)


def of_turns(records: list[dict]) -> str:
    """Return u, commas and distinct-2 by turn and policy, with the differences that H1 to H3
    ask."""
    table, parts = pd.DataFrame(records), []
    for turn, own in table.groupby("turn"):
        wide = {name: own.pivot(index="seed", columns="label", values=name) for name in EACH_TURN}
        rows = []
        for label in ("start", "SPPO", "S-SPPO"):
            if label not in wide["u"]:
                continue
            u = wide["u"]
            row = [label, str(u[label].notna().sum())]
            row += [str(interval(wide[name][label].dropna().tolist())) for name in EACH_TURN]
            row += [
                "" if label in ("start", other) else told((u[label] - u[other]).dropna())
                for other in ("start", "SPPO")
            ]
            rows.append(row)
        head = [f"turn {turn}", "seeds", *EACH_TURN.values(), "u less start's", "u less SPPO's"]
        parts.append(lines_of(head, rows))
    return "\n".join(parts)


def of_looks(records: list[dict]) -> str:
    """Return the differences that H1 to H3 ask, by look: the first seeds, the new, and all."""
    table, rows = pd.DataFrame(records), []
    for turn, own in table.groupby("turn"):
        u = own.pivot(index="seed", columns="label", values="u")
        for label, other in (("S-SPPO", "SPPO"), ("SPPO", "start")):
            less = (u[label] - u[other]).dropna()
            first, new = less[less.index <= FIRST], less[less.index > FIRST]
            cells = [told(first), told(new)]
            if len(new):
                both = interval(less.tolist(), SECOND_LOOK)
                cells.append(f"{both}, p = {both.p:.3f}")
            else:
                cells.append("-")
            rows.append([f"{label} less {other}, turn {turn}", *cells])
    looks = ["seeds 1 to 5, 95%", "seeds 6 to 10, 95%", "all, 97.06%"]
    return lines_of(["u", *looks], rows)


def of_play(runs: dict) -> str:
    """Return the last evaluation's win rates, entropy and distance of each method."""
    names = {
        "evaluate/judge/win_rate": "win rate by the judge",
        "evaluate/win_rate": "by the oracle",
        "score/entropy": "entropy, nats",
        "score/kl_to_initial": "KL to the start, nats",
        "judge/similarity/of_two_samples": "similarity of two samples",
    }
    rows = []
    for label, own in runs.items():
        last = [str(interval([run[name].iloc[-1] for run in own.values()])) for name in names]
        rows.append([label, str(len(own)), *last])
    return lines_of(["", "runs", *names.values()], rows)


def of_sums(runs: dict) -> str:
    """Return area and final accuracy of SSPO and GMPO, and SSPO's advantage."""
    measures: dict[str, dict[str, dict[int, float]]] = {"area": {}, "final": {}}
    for label, own in runs.items():
        course = {seed: run["evaluate/accuracy"].to_numpy(float) for seed, run in own.items()}
        areas = {s: float(np.trapezoid(y) / (len(y) - 1)) for s, y in course.items()}
        measures["area"][label] = areas
        measures["final"][label] = {s: float(y[-1]) for s, y in course.items()}
    rows = []
    for label, own in runs.items():
        row = [label, str(len(own))]
        for found in measures.values():
            row.append(str(interval(list(found[label].values()))))
            both = sorted(found[label].keys() & found.get("sspo", {}))
            less = [found["sspo"][s] - found[label][s] for s in both]
            row.append("" if label == "sspo" else told(less))
        row.append(str(interval([run["score/entropy"].min() for run in own.values()])))
        ratios = [run["train/ratio/max"].max() for run in own.values()]
        rows.append([*row, f"{np.median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})"])
    head = ["", "runs", "area", "SSPO's less it", "final accuracy", "SSPO's less it"]
    return lines_of([*head, "entropy floor, nats", "largest token ratio"], rows)


def draw(runs: dict, records: list[dict], path: Path) -> None:
    """Draw u and commas by iteration with a band of a standard error, and u of the second turn."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, (name, title) in zip(axes, ITERATIONS.items(), strict=False):
        for colour, (label, own) in enumerate(runs.items()):
            at = next(iter(own.values()))[name].index
            y = np.stack([run[name].to_numpy() for run in own.values()])
            error = y.std(0, ddof=1) / len(y) ** 0.5 if len(y) > 1 else np.zeros(len(at))
            axis.plot(at, y.mean(0), color=f"C{colour}", marker="o", ms=3, label=label)
            axis.fill_between(
                at, y.mean(0) - error, y.mean(0) + error, color=f"C{colour}", alpha=0.15
            )
        axis.set(title=title, xlabel="iteration")
        axis.grid(alpha=0.3)
    axes[0].legend()
    second = [r for r in records if r["turn"] == 2]
    for place, label in enumerate(("start", "SPPO", "S-SPPO")):
        own = [r["u"] for r in second if r["label"] == label]
        axes[2].plot([place] * len(own), own, "o", ms=4, alpha=0.6, color="0.4")
        axes[2].plot([place - 0.2, place + 0.2], [np.mean(own)] * 2, color="C3")
    axes[2].set(title="u, second turn, a point a seed")
    axes[2].set_xticks(range(3), ("start", "SPPO", "S-SPPO"))
    axes[2].grid(alpha=0.3)
    plt.rcParams["svg.hashsalt"] = "smollm"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(output: Path, play: Path, sums: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    played = COURSES.read_sweep(play)
    records = [one for file in sorted(play.glob("second_turn/*.json")) for one in read_json(file)]
    parts = [of_turns(records), of_looks(records), of_play(played)]
    if (sums / "sweep.json").is_file():
        parts.append(of_sums(COURSES.read_sweep(sums)))
    text = "\n".join(parts)
    (output / "tables.md").write_text(text, encoding="utf-8")
    draw(played, records, output / "smollm.svg")
    print(text)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
