"""Record what became of a run whose process has ended."""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ssppo_jax.files import writing
from ssppo_jax.sweep.grid import Grid, Run, read_result
from ssppo_jax.sweep.table import number, write

INTERRUPTED = 75  # what a run that was stopped and saved exits with, and so the sweep


@dataclasses.dataclass
class Job:
    """A run at work."""

    run: Run
    work: Any  # its subprocess.Popen, or submitit's job
    before: int  # bytes of output that earlier attempts left
    start: float = dataclasses.field(default_factory=time.perf_counter)

    def give_up(self, why: str) -> None:
        """Note that the run was ended at once."""
        self.run.status, self.run.reason = "stopped", why
        self.run.seconds += time.perf_counter() - self.start


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
    job: Job, code: int | None, grid: Grid, workdir: Path, progress: tqdm, *, told: bool
) -> None:
    """Fill in what became of a run, write the table anew, and say so.

    `code` is its exit code, None if it left none. `told` says that it was told to stop.
    """
    run, seconds = job.run, time.perf_counter() - job.start
    run.seconds += seconds
    read_result(run, grid.measures)
    if run.status != "done":
        run.status = "stopped" if told or code == INTERRUPTED else "failed"
        line = last_line(output_of(run), since=job.before)
        run.reason = f"{_cause(code)}: {line or 'nothing was printed'}"
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
