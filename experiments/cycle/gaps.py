"""Duality gaps of language models under the circle, from the responses that their runs keep.

    python experiments/cycle/gaps.py SWEEP DIR

writes DIR/gaps.md and DIR/gaps.svg. Every iterate answered the same held-out prompts. An iterate's
responses to a prompt are a distribution over the kinds of `cycle.py`; the averaged policy plays one
of the iterates so far, each as often."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from cycle import COLOURS, NEITHER, PREFERENCE, kind

from ssppo_jax.config import load_module
from ssppo_jax.files import read_json, read_records

matplotlib.use("Agg")
import matplotlib.pyplot as plt

interval = load_module("experiments/overconfidence/courses.py").interval


class Course(NamedTuple):
    """Hold a run's gaps by iterate: of the iterate, and of the average of all up to it."""

    share: np.ndarray  # [T,kinds], mean over prompts
    own: np.ndarray  # [T], against the best single colour
    average: np.ndarray  # [T]
    own_iterates: np.ndarray  # [T], against the best of the run's iterates
    average_iterates: np.ndarray  # [T]


def shares(path: Path) -> np.ndarray:
    """Return how often each iterate gave each kind of response to each prompt: [T,prompts,kinds].

    The start is the first."""
    rows = list(read_records(path))
    prompts = {name: i for i, name in enumerate(dict.fromkeys(r["prompt_id"] for r in rows))}
    steps = {step: i for i, step in enumerate(sorted({r["iteration"] for r in rows}))}
    found = np.zeros((len(steps), len(prompts), NEITHER + 1))
    for row in rows:
        found[steps[row["iteration"]], prompts[row["prompt_id"]], kind(row["response"])] += 1
    return found / found.sum(axis=2, keepdims=True)


def course(share: np.ndarray) -> Course:
    """Return the gaps, 2 max P(other beats it) - 1, from shares [T,prompts,kinds].

    Against a single colour the mean over prompts is enough. Against an iterate both play on the
    same prompt, so W[s,t] is the mean over prompts of share[s] P share[t].
    """
    count = np.arange(1, len(share) + 1)[:, None]
    mean = share.mean(axis=1)
    running = np.cumsum(mean, axis=0) / count
    wins = np.einsum("sxa,ab,txb->st", share, PREFERENCE, share) / share.shape[1]
    against = np.cumsum(wins, axis=1) / count.T  # [s,T]: s against the average up to T
    so_far = np.tril(np.ones_like(wins)).T.astype(bool)  # the iterates up to T, T included
    return Course(
        mean,
        _gap(mean @ PREFERENCE.T),
        _gap(running @ PREFERENCE.T),
        _gap(wins.T),
        _gap(np.where(so_far, against, 0.0).T),
    )


def _gap(chances: np.ndarray) -> np.ndarray:
    return 2 * chances.max(axis=1) - 1


def read(folder: Path) -> dict[str, dict[int, Course]]:
    """Return the finished runs of a sweep by label and seed."""
    found: dict[str, dict[int, Course]] = {}
    for run in read_json(folder / "sweep.json")["runs"]:
        own = folder / Path(run["folder"]).name
        if (own / "result.json").is_file():
            runs = found.setdefault(run["label"], {})
            runs[run["seed"]] = course(shares(own / "samples.jsonl"))
    return found


def table(runs: dict[str, dict[int, Course]]) -> str:
    """Return the gaps of the last average and of the late iterates, with intervals over seeds."""
    heads = ["", "runs", "start", "late iterates", "average", "late iterates less average"]
    heads += ["average, against the iterates", *COLOURS]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for label, own in runs.items():
        late = [c.own[len(c.own) // 2 :].mean() for c in own.values()]
        last = [c.average[-1] for c in own.values()]
        cells = [label, str(len(own)), str(interval([c.own[0] for c in own.values()]))]
        cells += [str(interval(late)), str(interval(last))]
        cells.append(str(interval([a - b for a, b in zip(late, last, strict=True)])))
        cells.append(str(interval([c.average_iterates[-1] for c in own.values()])))
        played = np.mean([c.share.mean(axis=0) for c in own.values()], axis=0)
        lines.append("| " + " | ".join([*cells, *(f"{x:.2f}" for x in played[:NEITHER])]) + " |")
    first = runs.get("SPPO", {})
    for label, own in runs.items():
        both = sorted(set(first) & set(own))
        if label != "SPPO" and both:
            less = interval([own[s].average[-1] - first[s].average[-1] for s in both])
            lines.append(f"\nGap of the average, {label} less SPPO, {less.n} seeds: {less}.")
    return "\n".join(lines) + "\n"


def figure(runs: dict[str, dict[int, Course]], path: Path) -> None:
    """Draw the colours that one seed plays, and the gaps of all seeds."""
    _, axes = plt.subplots(2, len(runs), figsize=(4 * len(runs), 5.5), squeeze=False)
    for (label, own), (above, below) in zip(runs.items(), axes.T, strict=True):
        seed, first = min(own.items())
        for i, (name, colour) in enumerate(zip(COLOURS, ("C3", "C2", "C0"), strict=True)):
            above.plot(first.share[:, i], color=colour, label=name)
        above.set(title=f"{label}, seed {seed}", ylim=(0, 1), ylabel="share of responses")
        for one in own.values():
            below.plot(one.own, color="0.75", linewidth=0.8)
            below.plot(one.average, color="C1", linewidth=1.2)
        below.set(xlabel="iteration", ylabel="duality gap", ylim=(0, 1))
        below.plot([], color="0.75", label="iterate")
        below.plot([], color="C1", label="average so far")
    axes[0, 0].legend(fontsize=8)
    axes[1, 0].legend(fontsize=8)
    plt.tight_layout()
    plt.savefig(path)


def main(folder: Path, out: Path) -> None:
    runs = read(folder)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gaps.md").write_text(table(runs), encoding="utf-8")
    figure(runs, out / "gaps.svg")
    print(table(runs))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
