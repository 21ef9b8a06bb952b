"""Tables and figures of finished runs; it may be run while a sweep is at work.

    python experiments/overconfidence/summarise.py DIR SWEEP [SWEEP ...]

writes for each sweep's folder DIR/SWEEP.md and DIR/SWEEP.svg."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
from courses import JUDGED, Courses, falls, interval, late, read_sweep

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OTHERS = {  # column: what is logged
    "win rate by the training oracle": "evaluate/win_rate",
    "u": "evaluate/judge/reward",
    "entropy, nats": "score/entropy",
    "distinct-2": "generate/distinct_2",
    "repeated 4-grams": "generate/repetition_4",
    "gradient variance": "train/grad_variance",
    "KL to start, nats": "score/kl_to_initial",
    "similarity of pairs": "judge/pairs/similarity",
    "margin trained on": "judge/pairs/margin_gated",
}
SHOWN = (
    (JUDGED, "win rate over the start, by the judge"),
    ("evaluate/win_rate", "by the training oracle"),
    ("judge/pairs/similarity", "similarity of trained pairs"),
    ("score/kl_to_initial", "KL to the start, nats"),
)


def tables(runs: Courses) -> str:
    """Return the outcomes with their differences, on all prompts and on either kind alone, and what
    else was logged."""
    parts = [outcomes(runs, JUDGED, "late judged win rate")]
    for kind in ("open", "fixed"):
        name = f"evaluate/judge/mixture/{kind}/win_rate"
        parts.append(outcomes(runs, name, f"the same on prompts whose meaning is {kind}"))
    lines = ["| | " + " | ".join(OTHERS) + " |", "|" + " --- |" * (len(OTHERS) + 1)]
    for label, own in runs.items():
        cells = [of_last(own, name) for name in OTHERS.values()]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join([*parts, *lines]) + "\n"


def outcomes(runs: Courses, name: str, title: str) -> str:
    """Return the late win rate of every method and its differences; nothing where it is not
    logged."""
    lines = [f"| | runs | {title} | less SPPO's | S-SPPO's less it | fall from its peak |"]
    lines += ["|" + " --- |" * 6]
    for label, every in runs.items():
        own = {seed: run for seed, run in every.items() if name in run}
        cells = [label, str(len(own)), str(interval([late(run, name) for run in own.values()]))]
        cells += [against(runs, label, "SPPO", name, 1), against(runs, label, "S-SPPO", name, -1)]
        cells += [str(falls(own, name))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def against(runs: Courses, label: str, other: str, name: str, sign: int) -> str:
    """Write the difference to SPPO or S-SPPO of the same regime ("coin: SPPO"), paired by seed; if
    the sign is negative, the other's less this one's."""
    other = label[: label.rfind(": ") + 2] + other if ": " in label else other
    if label == other or other not in runs:
        return ""
    both = [s for s in runs[label].keys() & runs[other].keys() if name in runs[label][s]]
    found = interval(
        [sign * (late(runs[label][s], name) - late(runs[other][s], name)) for s in sorted(both)]
    )
    return f"{found}, p = {found.p:.3f}" if found.n > 1 else str(found)


def of_last(runs: dict, name: str) -> str:
    """Return mean and standard error over seeds of the mean of a run's last values."""
    values = [late(run, name) for run in runs.values() if name in run]
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{np.mean(values):.3g} ± {np.std(values, ddof=1) / len(values) ** 0.5:.2g}"


def draw(runs: Courses, path: Path) -> None:
    """Draw the courses, mean over seeds with a band of a standard error."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), sharex=True, layout="constrained")
    for axis, (name, title) in zip(axes.ravel(), SHOWN, strict=True):
        for label, own in runs.items():
            courses = [run[name] for run in own.values() if name in run]
            if not courses:
                continue
            x, y = courses[0].index.to_numpy(), np.stack([c.to_numpy() for c in courses])
            (line,) = axis.plot(x, y.mean(0), label=label, linewidth=1.4)
            if len(y) > 1:
                error = y.std(0, ddof=1) / len(y) ** 0.5
                low, high = y.mean(0) - error, y.mean(0) + error
                axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("iteration")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    plt.rcParams["svg.hashsalt"] = "overconfidence"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(output: Path, folders: list[Path]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        runs = {label: own for label, own in read_sweep(folder).items() if own}
        if not runs:
            continue
        text = tables(runs)
        (output / f"{folder.name}.md").write_text(text, encoding="utf-8")
        draw(runs, output / f"{folder.name}.svg")
        print(f"{folder.name}\n\n{text}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
