"""Where an iteration's time goes, on eight virtual CPU devices (BENCH_DEVICES): python
benchmarks/iteration.py [MODEL] [--config.KEY=VALUE ...]

Trains four iterations of the quickstart's config with a checkpoint after each, under several
settings. Prints the mean seconds of each phase over the iterations whose programs are compiled (the
third and fourth), and the share of everything but sampling and training.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ssppo_jax.runs.metrics import read_metrics

DEVICES = os.environ.get("BENCH_DEVICES", "8")
SETTINGS = {
    "checkpoints in the foreground, initial policy from disk": {
        "checkpoint.async_save": "false",
        "train.reference_storage": "disk",
    },
    "the defaults: in the background, from the host's memory": {},
    "the same, initial policy not scored": {"train.reference_storage": "off"},
}
COMMON = {
    "mesh.data": "1",
    "mesh.fsdp": DEVICES,
    "sampling.mesh.data": DEVICES,
    "sampling.mesh.tensor": "1",
    "train.iterations": "4",
    "train.prompts_per_iteration": "16",
    "eval.every": "0",
    "eval.final_num_samples": "1",
    "data.heldout": "2",
    "checkpoint.every": "1",
    "checkpoint.final": "false",
    "checkpoint.export": "false",
}
PHASES = ("generate", "train", "judge", "score", "checkpoint", "rest")
FIRST = 2  # the first iteration that is counted


def main(argv: list[str]) -> None:
    model = next((arg for arg in argv if not arg.startswith("--")), "embedded:smollm2")
    more = [arg for arg in argv if arg.startswith("--")]
    print(f"| settings | iteration, s | {' | '.join(PHASES)} | all but generate and train |")
    print("|---" * (len(PHASES) + 3) + "|")
    for name, settings in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            spent = seconds(run(Path(folder), model, settings, more))
        total = spent.pop("iteration")
        share = 1 - (spent["generate"] + spent["train"]) / total
        cells = " | ".join(f"{spent[phase]:.1f}" for phase in PHASES)
        print(f"| {name} | {total:.1f} | {cells} | {share:.1%} |", flush=True)


def run(folder: Path, model: str, settings: dict[str, str], more: list[str]) -> Path:
    """Train in a process of its own."""
    given = {"model.source": model} | COMMON | settings
    keys = [f"--config.{key}={value}" for key, value in given.items()]
    changed = {arg.partition("=")[0] for arg in more}
    keys = [key for key in keys if key.partition("=")[0] not in changed]
    flags = f"--xla_force_host_platform_device_count={DEVICES}" if DEVICES != "1" else ""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "ssppo_jax", "train", "--config=quickstart"]
    subprocess.run(
        [*command, f"--workdir={folder}", *keys, *more],
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return folder / "metrics.jsonl"


def seconds(log: Path) -> dict[str, float]:
    """Return the mean seconds of each phase of an iteration, and of the whole iteration."""
    rows: dict[str, list[float]] = {}
    for record in read_metrics(log):
        if record["iteration"] >= FIRST and record["phase"] != "train":
            wall = record["wall"]
            if record["phase"] == "iteration":
                rows.setdefault("iteration", []).append(wall["iteration_seconds"])
                rows.setdefault("train", []).append(wall["train_seconds"])
                rows.setdefault("checkpoint", []).append(wall["checkpoint_seconds"])
            elif record["phase"] in PHASES:
                rows.setdefault(record["phase"], []).append(wall["seconds"])
    found = {name: float(np.mean(values)) for name, values in rows.items()}
    known = sum(value for name, value in found.items() if name != "iteration")
    return found | {"rest": found["iteration"] - known}


if __name__ == "__main__":
    main(sys.argv[1:])
