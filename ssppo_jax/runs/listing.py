"""List the run folders below a folder: what each trains, how far it is, and its last numbers."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import NamedTuple

from ssppo_jax import files
from ssppo_jax.distributed.stop import holder_of
from ssppo_jax.errors import DataError
from ssppo_jax.runs.metrics import read_metrics

COLUMNS = ("run", "status", "iteration", "loss", "value", "reward", "win rate", "changed")


class Listed(NamedTuple):
    """Hold what a list of runs says of one; numbers that a run does not have are None."""

    folder: Path
    status: str  # finished, running, running elsewhere, stopped, not begun, or unreadable
    iteration: int
    iterations: int
    name: str  # of the loss; of a fit, its head
    loss: float | None
    reward: float | None  # mean over the last rollout
    win_rate: float | None  # of the last evaluation
    changed: float  # seconds since 1970


def list_runs(folder: Path) -> list[Listed]:
    """Return the runs in a folder and below it, the last changed first."""
    below = [path.parent for path in sorted(folder.rglob("config.json"))]
    runs = [_listed(run) for run in below if files.run_config(run)]
    return sorted(runs, key=lambda run: -run.changed)


def _is_fit(run: Path) -> bool:
    """Return whether `fit` made a folder: its account of the data counts pairs."""
    try:
        return "train_pairs" in files.read_json(run / "prompts.json")
    except (DataError, OSError):
        return False


def _listed(run: Path) -> Listed:
    config = files.run_config(run)
    log, result = run / "metrics.jsonl", run / "result.json"
    last: dict[str, float] = {}
    done, status = 0, "not begun"
    try:
        for record in read_metrics(log) if log.is_file() else ():
            status, phase = "stopped", record["phase"]
            done = record["iteration"] + (phase == "iteration")
            last |= {f"{phase}/{name}": value for name, value in record["values"].items()}
    except (DataError, KeyError) as error:
        status = f"unreadable ({error})"
    name = config.get("loss.name", "")
    if _is_fit(run):  # it has epochs and no iterations, and its loss is its head's
        name, done = f"fit {config.get('fit.head')}", int(result.is_file())
    if result.is_file():
        status = "finished"
    elif holder := holder_of(run):
        status = "running" if holder.get("host") == socket.gethostname() else "running elsewhere"
    times = [path.stat().st_mtime for path in (run / "config.json", log, result) if path.is_file()]
    return Listed(
        run,
        status,
        done,
        config.get("train.iterations", 0),
        name,
        last.get("train/loss"),
        last.get("judge/reward/mean"),
        last.get("evaluate/win_rate"),
        max(times),
    )


def table(runs: list[Listed], folder: Path) -> str:
    """Return the list as text, a run a line."""
    rows = [COLUMNS] + [
        (
            str(run.folder.relative_to(folder)) if run.folder != folder else ".",
            run.status,
            f"{run.iteration}/{run.iterations}",
            run.name,
            _shown(run.loss),
            _shown(run.reward),
            _shown(run.win_rate),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed)),
        )
        for run in runs
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
