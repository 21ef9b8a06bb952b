"""The dose of near-duplicates: S-SPPO less SPPO and SPPO's fall by the share of fixed prompts.

    python experiments/overconfidence/dose.py DOSES BASELINES DIR

reads the folders of doses.py and baselines.py and writes DIR/dose.md. Of the second it takes SPPO
and S-SPPO, whose dose is 0.3. The slope is that of a straight line through a seed's differences."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from courses import JUDGED, Courses, falls, interval, late, read_sweep

KINDS = {"all prompts": JUDGED} | {
    f"{kind} prompts": f"evaluate/judge/mixture/{kind}/win_rate" for kind in ("open", "fixed")
}
OWN = 0.3  # the dose of config.py


def by_dose(doses: Courses, own: Courses) -> dict[float, Courses]:
    """Return the runs of SPPO and S-SPPO by dose, ascending."""
    found: dict[float, Courses] = {OWN: {label: own[label] for label in ("SPPO", "S-SPPO")}}
    for label, runs in doses.items():
        dose, method = label.removeprefix("p = ").split(": ")
        found.setdefault(float(dose), {})[method] = runs
    return dict(sorted(found.items()))


def gains(runs: Courses, name: str) -> dict[int, float]:
    """Return for each seed that both have S-SPPO's late win rate less SPPO's."""
    first, second = runs["S-SPPO"], runs["SPPO"]
    both = [s for s in sorted(first.keys() & second) if name in first[s] and name in second[s]]
    return {seed: late(first[seed], name) - late(second[seed], name) for seed in both}


def table(found: dict[float, Courses], title: str, name: str) -> str:
    """Return a row for each dose where this kind of prompt is, and the slope over all of them."""
    lines = [f"| dose, {title} | runs | SPPO | S-SPPO | S-SPPO less SPPO | SPPO's fall |"]
    lines += ["|" + " --- |" * 6]
    known = {dose: gains(runs, name) for dose, runs in found.items()}
    for dose, gained in known.items():
        if not gained:
            continue
        rates = [
            str(interval([late(found[dose][m][s], name) for s in gained]))
            for m in ("SPPO", "S-SPPO")
        ]
        gain = interval(list(gained.values()))
        sppo = {s: run for s, run in found[dose]["SPPO"].items() if name in run}
        cells = [f"{dose:g}", str(len(gained)), *rates]
        cells += [f"{gain}, p = {gain.p:.3f}", str(falls(sppo, name))]
        lines.append("| " + " | ".join(cells) + " |")
    doses = [dose for dose, gained in known.items() if gained]
    seeds = sorted(set.intersection(*(set(known[dose]) for dose in doses)))
    slopes = [np.polyfit(doses, [known[dose][s] for dose in doses], 1)[0] for s in seeds]
    slope = interval(slopes)
    lines += ["", f"Slope of S-SPPO less SPPO, {slope.n} seeds: {slope}, p = {slope.p:.3f}", ""]
    return "\n".join(lines)


def main(doses: Path, own: Path, output: Path) -> None:
    found = by_dose(read_sweep(doses), read_sweep(own))
    text = "\n".join(table(found, title, name) for title, name in KINDS.items())
    output.mkdir(parents=True, exist_ok=True)
    (output / "dose.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
