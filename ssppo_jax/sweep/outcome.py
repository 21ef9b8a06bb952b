"""Record what became of a run whose process has ended."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm

from ssppo_jax.files import writing
from ssppo_jax.sweep.grid import Grid, Run, read_result
from ssppo_jax.sweep.table import number, write

INTERRUPTED = 75  # what a run that was stopped and saved exits with, and so the sweep


def output_of(run: Run) -> Path:
    """Return the file that a run's process prints into."""
    return run.folder / "output.log"


def begin_output(run: Run) -> int:
    """Make a run's folder and output; return the bytes that earlier attempts left in it."""
    output = output_of(run)
    with writing(output):
        run.folder.mkdir(parents=True, exist_ok=True)
        output.touch()
    return output.stat().st_size


def finish(
    run: Run,
    grid: Grid,
    workdir: Path,
    progress: tqdm,
    *,
    code: int | None,  # None: it left none
    before: int,  # bytes of output that earlier attempts left
    start: float,  # of this one, by time.perf_counter
    told: bool,  # whether it was told to stop
) -> None:
    """Fill in what became of a run, write the table anew, and say so."""
    seconds = time.perf_counter() - start
    run.seconds += seconds
    read_result(run, grid.measures)
    if run.status != "done":
        run.status = "stopped" if told or code == INTERRUPTED else "failed"
        run.reason = (
            f"{_cause(code)}: {last_line(output_of(run), since=before) or 'nothing was printed'}"
        )
    write(grid, workdir)
    progress.write(f"{run.folder.name}: {_said(run)} ({seconds:.0f} s)", file=sys.stderr)
    if run.status != "stopped":
        progress.update()


def last_line(path: Path, since: int = 0) -> str:
    """Return the last line that is not empty, of what stands after some bytes."""
    with open(path, "rb") as file:
        file.seek(max(since, file.seek(0, 2) - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _cause(code: int | None) -> str:
    if code is None:
        return "the job ended without an exit code"
    return signal.Signals(-code).name if code < 0 else f"exit {code}"


def _said(run: Run) -> str:
    if run.status == "done":
        return ", ".join(f"{name} {number(value)}" for name, value in run.values.items())
    return f"{run.status}, {run.reason}"
