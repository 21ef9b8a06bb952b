"""Margins of the trained pairs by similarity, and the cosine of winner and loser: the second table
of the README.

python experiments/calibration/margins.py runs/calibration
"""

import itertools
import sys
from pathlib import Path

import numpy as np

from ssppo_jax.files import read_json, read_records
from ssppo_jax.runs.metrics import read_metrics

BINS = np.linspace(0.0, 1.0, 6)


def main(workdir: Path) -> None:
    runs = read_json(workdir / "sweep.json")["runs"]
    for label in dict.fromkeys(run["label"] for run in runs):
        folders = [workdir / Path(run["folder"]).name for run in runs if run["label"] == label]
        pairs = [pair for folder in folders for pair in read_records(folder / "pairs.jsonl")]
        similarity = np.array([pair["similarity"] for pair in pairs])
        raw, gated = (
            np.abs(np.diff([pair[key] for pair in pairs]))[:, 0] for key in ("win_rate", "target")
        )
        print(
            f"{label}: cosine of winner and loser in the last three steps"
            f" {np.mean([cosine(f) for f in folders]):.2f}"
        )
        for low, high in itertools.pairwise(BINS):
            here = (similarity >= low) & ((similarity < high) | (high == 1.0))
            if here.any():
                margins = f"margin {raw[here].mean():.3f}, trained on {gated[here].mean():.3f}"
                print(f"  S {low:.1f} to {high:.1f}: {here.sum()} pairs, {margins}")


def cosine(folder: Path) -> float:
    steps = [
        record["values"]
        for record in read_metrics(folder / "metrics.jsonl")
        if record["phase"] == "train"
    ]
    return float(np.mean([step["similarity/hidden"] for step in steps[-3:]]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
