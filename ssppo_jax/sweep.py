"""A grid of runs times seeds: one process per run, resumable, ending in a table and a plot of the final win rate.

A swept file is a config file (it defines get_config) with a function sweep(add), which calls add once per grid point
with the keys that point changes, and, if it wants more than the config's own seed, SEEDS:

    SEEDS = (0, 1, 2)

    def sweep(add):
        for beta in (0.01, 0.05):
            add({"loss.beta": beta})

Every point runs once per seed. `add()` without keys is the config as it stands. A point that names a component
(`loss.name`) gives it its own defaults, as on the command line. Values have the type of the key they replace.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ssppo_jax import config as cfg
from ssppo_jax import run_folder, schema
from ssppo_jax.errors import ConfigError
from ssppo_jax.lifecycle import RunLock, StopSignal
from ssppo_jax.progress import bar

# This process must not touch a device: an accelerator belongs to one process, and the runs need it.
TRAIN = (sys.executable, "-m", "ssppo_jax", "train")
INTERRUPTED = 75  # what a run that was stopped and saved exits with, and so the sweep
POLL_SECONDS = 0.5
LONGEST_NAME = 120

Point = dict[str, Any]  # {"loss.beta": 0.1}


@dataclasses.dataclass
class Run:
    """One process: a grid point with a seed, and what became of it."""

    point: Point
    seed: int
    folder: Path
    command: list[str]
    status: str = "pending"  # done, failed, stopped, or pending
    win_rate: float | None = None
    reason: str = ""  # of a failure: exit code or signal, and the last line the run printed
    seconds: float = 0.0


def sweep(spec: str, workdir: Path, overrides: Mapping[str, str], *, dry_run: bool = False) -> int:
    """Run (or continue) every grid point of a file times its seeds, one after the other.

    A run whose folder has a result.json is done; an unfinished or failed one is started again and continues. A failed
    run is kept in the table as failed. SIGINT and SIGTERM are passed on to the run at work, which saves, and end the
    sweep. Writes sweep.json (after every run), sweep.md and sweep.png into `workdir`.

    Returns the exit code: 0, 1 when runs failed, 75 when stopped.

    Raises:
      ConfigError: before anything runs: no sweep(add), a point that cannot run (all of them, with the nearest keys), or
        a folder that holds a run with another configuration.
    """
    runs = plan(spec, workdir, overrides)
    if dry_run:
        for run in runs:
            print(shlex.join(run.command) + ("  # done" if run.status == "done" else ""))
        return 0
    with RunLock(workdir), StopSignal() as stop:
        _run_all(runs, workdir, stop)
    _write(runs, workdir)
    (workdir / "sweep.md").write_text(table(runs) + "\n")
    _plot(runs, workdir / "sweep.png")
    print(f"{table(runs)}\n\nsweep: {workdir}/sweep.json, sweep.md, sweep.png")
    if any(run.status in ("stopped", "pending") for run in runs):
        print(f"stopped; the same command continues {workdir}", file=sys.stderr)
        return INTERRUPTED
    return int(any(run.status == "failed" for run in runs))


# ---- planning --------------------------------------------------------------------------------------------------------


def plan(spec: str, workdir: Path, overrides: Mapping[str, str]) -> list[Run]:
    """Every run of the sweep, checked; those with a result are already `done`.

    Raises:
      ConfigError: see `sweep`.
    """
    base = schema.load(spec, dict(overrides))
    points, seeds = _grid(spec, base.seed, overrides)
    runs, problems = [], []
    for point in points:
        for seed in seeds:
            run, found = _planned(spec, workdir, overrides, point, seed)
            runs.append(run)
            problems += [problem for problem in found if problem not in problems]
    cfg.raise_problems(problems)
    return runs


def _grid(spec: str, own_seed: int, overrides: Mapping[str, str]) -> tuple[list[Point], tuple[int, ...]]:
    """What the file asks for: its points and its seeds."""
    module, points = cfg.load_module(spec), []
    if not hasattr(module, "sweep"):
        raise ConfigError(f"--config={spec}: it defines no sweep(add); a swept file must, next to get_config()")

    def add(changes: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        points.append({key: _plain(value) for key, value in {**(changes or {}), **more}.items()})

    cfg.run_file(module, module.sweep, add)
    problems = [] if points else [f"{spec}: sweep(add) added nothing; call add() for the config as it stands"]
    problems += [f"{spec}: added twice: {_label(p)}" for i, p in enumerate(points) if p in points[:i]]
    if any("seed" in point for point in points):
        problems.append(f"{spec}: seeds are not swept by add; write SEEDS = (0, 1, 2) in the file")
    seeds = tuple(getattr(module, "SEEDS", (own_seed,)))
    if not seeds or any(type(s) is not int or s < 0 for s in seeds) or len(set(seeds)) < len(seeds):
        problems.append(f"{spec}: SEEDS={seeds!r}: must be distinct whole numbers from 0, such as (0, 1, 2)")
    swept = {key for point in points for key in point} | ({"seed"} if hasattr(module, "SEEDS") else set())
    problems += [f"--config.{key}: {spec} sweeps it; leave it out" for key in sorted(swept & set(overrides))]
    cfg.raise_problems(problems)
    return points, seeds


def _planned(spec: str, workdir: Path, overrides: Mapping[str, str], point: Point, seed: int) -> tuple[Run, list[str]]:
    """One run, and what is wrong with it."""
    changes = {**overrides, **{key: _text(value) for key, value in point.items()}, "seed": str(seed)}
    folder = workdir / _folder_name(f"{_label(point)},seed={seed}")
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    run = Run(point, seed, folder, [*TRAIN, f"--config={spec}", *flags, f"--workdir={folder}"])
    try:
        config = schema.load(spec, changes)
    except ConfigError as error:
        return run, [f"{_label(point)}: {error}"]
    flat, problems = cfg.flatten(config), []
    for key, value in point.items():
        actual = flat[key if key in flat else f"{key}.name"]
        if isinstance(value, str) != isinstance(actual, str) or actual != value:
            problems.append(f"{_label(point)}: {key} takes {type(actual).__name__}, as in {actual!r}, not {value!r}")
    other = run_folder.differences(folder, config)
    if other:
        problems.append(f"{folder} holds a run with another configuration: {'; '.join(other)}; give a new --workdir")
    _read_result(run)
    return run, problems


def _plain(value: Any) -> Any:
    """NumPy scalars (np.logspace is a natural grid) and lists as what a config holds."""
    value = value.item() if isinstance(value, np.generic) else value
    return tuple(value) if isinstance(value, list) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value).replace(" ", "")


def _label(point: Point) -> str:
    return ",".join(f"{key}={_text(value)}" for key, value in point.items()) or "as-configured"


def _folder_name(label: str) -> str:
    """A label as a folder name: what a file system or shell may dislike is replaced, and a hash keeps it unique."""
    name = re.sub(r"[^\w.,=+-]", "_", label, flags=re.ASCII)
    if name == label and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


# ---- running ---------------------------------------------------------------------------------------------------------


def _run_all(runs: list[Run], workdir: Path, stop: StopSignal) -> None:
    todo = [run for run in runs if run.status != "done"]
    with bar(len(todo), what="sweep", unit="runs") as progress:
        if len(todo) < len(runs):
            progress.write(f"{len(runs) - len(todo)} of {len(runs)} runs are done already", file=sys.stderr)
        for run in todo:
            if stop.requested:
                return
            _execute(run, stop, progress)
            _write(runs, workdir)
            progress.write(f"{run.folder.name}: {_outcome(run)}", file=sys.stderr)
            if run.status == "stopped":
                return
            progress.update()


def _execute(run: Run, stop: StopSignal, progress: tqdm) -> None:
    """One run in its own process, its output in output.log; fills in what became of it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    output, start = run.folder / "output.log", time.perf_counter()
    before = output.stat().st_size if output.is_file() else 0
    with open(output, "ab") as log:
        child = subprocess.Popen(run.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            code = _wait(child, run, output, stop, progress)
        except BaseException:  # a second Ctrl-C: stop at once
            child.kill()
            child.wait()
            raise
    run.seconds = time.perf_counter() - start
    _read_result(run)
    if run.status == "done":
        return
    run.status = "stopped" if stop.requested or code == INTERRUPTED else "failed"
    cause = signal.Signals(-code).name if code < 0 else f"exit {code}"
    run.reason = f"{cause}: {_last_line(output, since=before) or 'nothing was printed'}"


def _wait(child: subprocess.Popen, run: Run, output: Path, stop: StopSignal, progress: tqdm) -> int:
    """The exit code of a run; a request to stop is passed on to it once."""
    told = False
    while True:
        try:
            return child.wait(timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        if stop.requested and not told:
            # SIGTERM whichever came: Ctrl-C has already reached the run, and a second SIGINT would not let it save.
            child.terminate()
            told = True
        if sys.stderr.isatty():
            progress.set_postfix_str(f"{run.folder.name}: {_last_line(output)[:80]}")


def _last_line(path: Path, since: int = 0) -> str:
    with open(path, "rb") as file:
        file.seek(max(since, file.seek(0, 2) - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _read_result(run: Run) -> None:
    path = run.folder / "result.json"
    if path.is_file():
        run.status, run.win_rate = "done", json.loads(path.read_text())["win_rate"]


def _outcome(run: Run) -> str:
    if run.status == "done":
        return f"win rate {run.win_rate:.3f} in {run.seconds:.0f} s"
    return f"{run.status}, {run.reason}"


# ---- results ---------------------------------------------------------------------------------------------------------


def summary(runs: list[Run]) -> list[dict]:
    """One row per grid point: mean and standard error of the win rate over the seeds that finished, and the counts."""
    rows = []
    for point in [run.point for i, run in enumerate(runs) if run.point not in [r.point for r in runs[:i]]]:
        mine = [run for run in runs if run.point == point]
        rates = [run.win_rate for run in mine if run.status == "done"]
        n = len(rates)
        rows.append(
            {
                "point": point,
                "mean": float(np.mean(rates)) if n else None,
                "standard_error": float(np.std(rates, ddof=1) / math.sqrt(n)) if n > 1 else None,
                "n": n,
                "failed": sum(run.status == "failed" for run in mine),
                "unfinished": sum(run.status in ("stopped", "pending") for run in mine),
            }
        )
    return rows


def table(runs: list[Run]) -> str:
    """The summary as a Markdown table, with the reason of every failure under it."""
    rows = summary(runs)
    keys = list(dict.fromkeys(key for row in rows for key in row["point"]))
    lines = [[*keys, "win rate", "n", "failed", "unfinished"]]
    lines += [["---"] * len(lines[0])]
    for row in rows:
        varied = [_text(row["point"][key]) if key in row["point"] else "" for key in keys]
        lines.append([*varied, _rate(row), str(row["n"]), str(row["failed"] or ""), str(row["unfinished"] or "")])
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    failures = [f"- {run.folder.name}: {run.reason}" for run in runs if run.status == "failed"]
    return "\n".join([text, "", "Failed runs:", *failures]) if failures else text


def _rate(row: dict) -> str:
    if row["mean"] is None:
        return "failed" if row["failed"] else "not run"
    error = "one seed" if row["standard_error"] is None else f"{row['standard_error']:.3f}"
    return f"{row['mean']:.3f} ± {error}" if row["n"] > 1 else f"{row['mean']:.3f} ({error})"


def _write(runs: list[Run], workdir: Path) -> None:
    records = [dataclasses.asdict(run) | {"folder": str(run.folder)} for run in runs]
    run_folder.write_json(workdir / "sweep.json", {"runs": records, "table": summary(runs)})


def _plot(runs: list[Run], path: Path) -> None:
    """Final win rate per grid point: every seed a dot, mean and standard error on top; failed points are named so."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = summary(runs)
    with rc_context({"text.parse_math": False, "font.size": 9}):
        longest = max(len(_label(row["point"])) for row in rows)
        figure = Figure(figsize=(5.0 + 0.07 * min(longest, 120), 1.2 + 0.32 * len(rows)), layout="constrained")
        ax = figure.subplots()
        ax.axvline(0.5, color="0.6", linewidth=0.8, linestyle="--")
        for y, row in enumerate(rows):
            rates = [r.win_rate for r in runs if r.point == row["point"] and r.status == "done"]
            ax.scatter(rates, [y] * len(rates), s=14, color="0.65", zorder=2)
            if row["mean"] is None:
                ax.text(0.5, y, f" {_rate(row)}", va="center", color="#c0392b")
            else:
                ax.errorbar(row["mean"], y, xerr=row["standard_error"], fmt="o", color="#1f6feb", capsize=3, zorder=3)
        lost = [f"  ({row['failed']} failed)" if row["failed"] and row["n"] else "" for row in rows]
        ax.set_yticks(range(len(rows)), [_label(row["point"]) + note for row, note in zip(rows, lost, strict=True)])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel("final held-out win rate (dots: seeds; mean ± standard error)")
        figure.savefig(path, dpi=150)
