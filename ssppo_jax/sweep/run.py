"""Run a grid (`grid.py`): one process for each run, some at a time, then a table and plots."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from ssppo_jax.distributed.progress import bar
from ssppo_jax.distributed.stop import RunLock, StopSignal
from ssppo_jax.sweep import cores
from ssppo_jax.sweep.grid import Grid, Run, plan
from ssppo_jax.sweep.outcome import INTERRUPTED, Job, begin_output, finish, last_line, output_of
from ssppo_jax.sweep.plots import plot_courses, plot_points
from ssppo_jax.sweep.submit import submit_all
from ssppo_jax.sweep.table import other_points, table, write

POLL_SECONDS = 0.2


def sweep(
    spec: str,
    workdir: Path,
    overrides: Mapping[str, str],
    *,
    jobs: int | None = None,
    launcher: str = "processes",
    options: Mapping[str, str] | None = None,
    dry_run: bool = False,
) -> int:
    """Run or continue every grid point of a file with each of its seeds.

    At most `jobs` runs work at a time; None is one, and on SLURM all. A run whose folder has a
    result.json is done. An unfinished or failed run is started again and continues. SIGINT and
    SIGTERM end the sweep: they are passed on to the runs at work, which save. Writes sweep.json
    and sweep.md after every run, and at the end sweep.png and curves.png, into `workdir`.

    The launcher is "processes", children of this process, or one of `submit.CLUSTERS`, whose
    `options` are submitit's parameters.

    Returns the exit code: 0, 1 when runs failed, 75 when stopped.

    Raises:
      ConfigError: what `grid.plan` finds, before anything runs.
    """
    grid = plan(spec, workdir, overrides)
    if dry_run:
        for run in grid.runs:
            print(shlex.join(run.command) + ("  # done" if run.status == "done" else ""))
        return 0
    with RunLock(workdir), StopSignal() as stop:
        if launcher == "processes":
            _run_all(grid, workdir, stop, jobs or 1)
        else:
            submit_all(grid, workdir, stop, launcher=launcher, jobs=jobs, options=options or {})
    write(grid, workdir)
    plot_points(grid, workdir / "sweep.png")
    plot_courses(grid, workdir / "curves.png")
    print("\n".join([table(grid), *other_points(grid, workdir)]))
    print(f"\nsweep: {workdir}/sweep.json, sweep.md, sweep.png, curves.png")
    if any(run.status in ("stopped", "pending") for run in grid.runs):
        print(f"stopped; the same command continues {workdir}", file=sys.stderr)
        return INTERRUPTED
    return int(any(run.status == "failed" for run in grid.runs))


# ---- runs at work --------------------------------------------------------------------------------


def _run_all(grid: Grid, workdir: Path, stop: StopSignal, jobs: int) -> None:
    """Run everything that is not done, in the grid's order.

    After a stop no run is started, and those at work are told to save.
    """
    waiting = [run for run in grid.runs if run.status != "done"]
    shares = _shares(min(jobs, len(waiting)))
    at_work: dict[int, Job] = {}  # by place among the shares
    told = False
    with bar(len(waiting), what="sweep", unit="runs") as progress:
        if len(waiting) < len(grid.runs):
            done = len(grid.runs) - len(waiting)
            progress.write(f"{done} of {len(grid.runs)} runs are done already", file=sys.stderr)
        try:
            while True:
                stopping = stop.requested or any(run.status == "stopped" for run in grid.runs)
                for place, share in enumerate(shares):
                    if waiting and place not in at_work and not stopping:
                        at_work[place] = _start(waiting.pop(0), share)
                if not at_work:
                    return
                if stopping and not told:
                    for job in at_work.values():
                        # SIGTERM whichever came: Ctrl-C has already reached the runs, and a second
                        # SIGINT would not let them save.
                        job.work.terminate()
                    told = True
                time.sleep(POLL_SECONDS)
                ended = [place for place, job in at_work.items() if job.work.poll() is not None]
                stopping = told or stop.requested
                for place in ended:
                    job = at_work.pop(place)
                    finish(job, job.work.returncode, grid, workdir, progress, told=stopping)
                _show(at_work, progress)
        except BaseException:  # a second Ctrl-C: stop at once
            _kill(at_work)
            write(grid, workdir)
            raise


def _shares(jobs: int) -> list[list[int]]:
    """Return the cores for each run: its part if several compute on the CPU, else all."""
    everything: list[list[int]] = [[]] * jobs
    if jobs < 2 or not cores.available():
        return everything
    platform = cores.platform()
    if platform == "cpu":
        return cores.shares(cores.available(), jobs)
    print(
        f"{jobs} runs share the {platform or 'device'}: if they run out of its memory, give each"
        f" its part with XLA_PYTHON_CLIENT_MEM_FRACTION={0.9 / jobs:.2f} in the environment",
        file=sys.stderr,
    )
    return everything


def _start(run: Run, share: list[int]) -> Job:
    """Start a run in its own process, its output added to output.log."""
    before = begin_output(run)
    with open(output_of(run), "ab") as log, cores.held_to(share) as environment:
        child = subprocess.Popen(
            run.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
    return Job(run, child, before)


def _kill(at_work: dict[int, Job]) -> None:
    for job in at_work.values():
        job.work.kill()
    for job in at_work.values():
        job.work.wait()
        job.give_up("killed before it could save")


def _show(at_work: dict[int, Job], progress: tqdm) -> None:
    """Show the last line of each run at work, on a terminal."""
    if sys.stderr.isatty():
        room = 100 // max(len(at_work), 1)
        lines = [
            f"{job.run.folder.name}: {last_line(output_of(job.run))}" for job in at_work.values()
        ]
        progress.set_postfix_str(" | ".join(line[-room:] for line in lines))
