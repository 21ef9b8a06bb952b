"""Run a sweep's grid in one process, without a page for each run.

    python experiments/overconfidence/run.py CONFIG.py WORKDIR [RUNS]

does what `python -m ssppo_jax sweep` does with the same folders and the same numbers. A run of this
study takes seconds, and half of a process of its own is imports and plots. Ctrl-C or SIGTERM stop
it, and the same command goes on. RUNS is the most that are started. sweep.json and sweep.md are
written after each run."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import jax
from courses import settings_of

from ssppo_jax.distributed.progress import bar
from ssppo_jax.errors import Interrupted, UserError
from ssppo_jax.files import default_cache
from ssppo_jax.sweep.grid import plan, read_result
from ssppo_jax.sweep.table import write
from ssppo_jax.training.train import train


def main(spec: str, workdir: Path, most: int | None = None) -> int:
    jax.config.update("jax_compilation_cache_dir", str(default_cache() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    grid = plan(spec, workdir, {})
    waiting = [run for run in grid.runs if run.status != "done"][:most]
    workdir.mkdir(parents=True, exist_ok=True)
    with bar(len(waiting), what=workdir.name, unit="runs") as progress:
        for run in waiting:
            start = time.perf_counter()
            run.folder.mkdir(exist_ok=True)
            try:
                train(settings_of(run.command), run.folder)
            except Interrupted:
                print(f"stopped; the same command continues {workdir}", file=sys.stderr)
                return 75
            except UserError as error:
                run.status, run.reason = "failed", str(error)
            run.seconds += time.perf_counter() - start
            read_result(run, grid.measures)
            write(grid, workdir)
            jax.clear_caches()  # the programs of a run are never used again
            progress.update()
    write(grid, workdir)
    return int(any(run.status == "failed" for run in grid.runs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])))
