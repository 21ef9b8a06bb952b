"""Run a sweep's grid in one process, without a page for each run.

    python experiments/overconfidence/run.py CONFIG.py WORKDIR [RUNS]

does what `python -m ssppo_jax sweep` does with the same folders and the same numbers. A run of this
study takes seconds, and half of a process of its own is imports and plots. Ctrl-C or SIGTERM stop
it, and the same command goes on. The same command beside it takes other runs of the same grid. A
run that failed is tried again when its folder is removed. RUNS is the most that are started.
sweep.json and sweep.md are written after each run."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import jax
from courses import settings_of

from ssppo_jax.distributed.progress import bar
from ssppo_jax.distributed.stop import RunLock
from ssppo_jax.errors import Interrupted, UserError
from ssppo_jax.files import default_cache, read_json
from ssppo_jax.sweep.grid import Grid, Run, plan, read_result
from ssppo_jax.sweep.table import write
from ssppo_jax.training.train import train


def main(spec: str, workdir: Path, most: int | None = None) -> int:
    jax.config.update("jax_compilation_cache_dir", str(default_cache() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    grid = plan(spec, workdir, {})
    learn_of_others(grid, workdir)
    waiting = [run for run in grid.runs if run.status == "pending"][:most]
    workdir.mkdir(parents=True, exist_ok=True)
    with bar(len(waiting), what=workdir.name, unit="runs") as progress:
        for run in waiting:
            learn_of_others(grid, workdir)
            with contextlib.suppress(Taken), claimed(run):
                start = time.perf_counter()
                try:
                    train(settings_of(run.command), run.folder)
                except Interrupted:
                    print(f"stopped; the same command continues {workdir}", file=sys.stderr)
                    return 75
                except UserError as error:
                    run.status, run.reason = "failed", str(error)
                run.seconds += time.perf_counter() - start
            learn_of_others(grid, workdir)
            write(grid, workdir)
            jax.clear_caches()  # the programs of a run are never used again
            progress.update()
    return int(any(run.status == "failed" for run in grid.runs))


class Taken(Exception):
    """Say that another process is at a run, or has finished it."""


@contextlib.contextmanager
def claimed(run: Run):
    """Hold a run while the block works at it.

    Raises:
      Taken: another process holds it, or it is done or failed.
    """
    folder = run.folder
    lock = RunLock(folder.with_name("locks") / folder.name)
    try:
        lock.__enter__()
    except UserError as error:
        raise Taken from error
    try:
        if run.status == "failed" or (folder / "result.json").is_file():
            raise Taken
        folder.mkdir(exist_ok=True)
        yield
    finally:
        lock.__exit__()


def learn_of_others(grid: Grid, workdir: Path) -> None:
    """Take over what other processes did: results from the folders, failures from sweep.json."""
    path = workdir / "sweep.json"
    written = read_json(path)["runs"] if path.is_file() else []
    theirs = {(run["label"], run["seed"]): run for run in written}
    for run in grid.runs:
        read_result(run, grid.measures)
        other = theirs.get((run.label, run.seed))
        if other is None or not run.folder.is_dir():
            continue
        run.seconds = max(run.seconds, other["seconds"])
        if run.status == "pending" and other["status"] == "failed":
            run.status, run.reason = "failed", other["reason"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])))
