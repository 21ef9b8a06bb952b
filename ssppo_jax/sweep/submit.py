"""Run a grid as jobs of submitit: an array of SLURM jobs, or processes of this machine."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssppo_jax.config.overrides import NO_LITERAL
from ssppo_jax.distributed.progress import bar
from ssppo_jax.distributed.stop import StopSignal
from ssppo_jax.errors import ConfigError
from ssppo_jax.sweep.grid import Grid, Run
from ssppo_jax.sweep.outcome import Job, begin_output, finish, output_of
from ssppo_jax.sweep.table import write
from ssppo_jax.sweep.task import Task

if TYPE_CHECKING:
    import submitit

CLUSTERS = ("slurm", "local")  # submitit's executors
POLL_SECONDS = 2.0
LATE = 10.0  # seconds that the result of a job which is over may take to be seen
MINUTES = 240  # a job's time limit; a run that reaches it is submitted again
TIMEOUTS = 1000  # how often
RESUBMISSIONS = 20  # of a run that was stopped by someone else, and saved
# The parameters of submitit that all its executors have; others are SLURM's own.
SHARED = (
    "name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node",
)  # fmt: skip


def submit_all(
    grid: Grid,
    workdir: Path,
    stop: StopSignal,
    *,
    launcher: str,
    jobs: int | None,
    options: Mapping[str, str],
) -> None:
    """Run everything that is not done. On SLURM all runs are one array job.

    A job that is preempted or reaches its time limit saves, and is submitted again. After a stop,
    jobs that wait are cancelled and those at work are told to save. `submitit/` in the sweep's
    folder holds the jobs' own logs.

    Args:
        grid, workdir, stop: the runs, the sweep's folder, and when to stop.
        launcher: one of CLUSTERS.
        jobs: runs at one time; None: on SLURM all, else 1.
        options: parameters of submitit by name, as text.

    Raises:
        ConfigError: submitit or SLURM is missing, or refuses an option.
    """
    slurm = launcher == "slurm"
    executor = _executor(workdir / "submitit", launcher, jobs, options)
    waiting = [run for run in grid.runs if run.status != "done"]
    room = len(waiting) if slurm else jobs or 1
    again = dict.fromkeys((run.folder for run in waiting), RESUBMISSIONS)
    at_work: list[Job] = []
    told = False
    with bar(len(waiting), what="sweep", unit="runs") as progress:
        try:
            while at_work or (waiting and not told):
                if stop.requested and not told:
                    _tell(at_work, slurm)
                    told = True
                if not told and waiting and len(at_work) < room:
                    count = room - len(at_work)
                    at_work += _submit(executor, waiting[:count])
                    del waiting[:count]
                time.sleep(POLL_SECONDS)
                ended = _ended(at_work, slurm)
                at_work = [job for job in at_work if job not in ended]
                until = time.monotonic() + LATE
                for job in ended:
                    code, stopping = _code(job.work, until), told or stop.requested
                    finish(job, code, grid, workdir, progress, told=stopping)
                    if job.run.status == "stopped" and again[job.run.folder] and not told:
                        again[job.run.folder] -= 1
                        waiting.append(job.run)
        except BaseException:  # a second Ctrl-C: stop at once
            for job in at_work:
                job.work.cancel(check=False)
                job.give_up("cancelled before it could save")
            write(grid, workdir)
            raise


def _code(job: submitit.Job, until: float) -> int | None:
    """Return the exit code of process 0; None if it left none until a monotonic time."""
    first = job.task(0)
    while not first.paths.result_pickle.exists():  # a shared disk may show it late
        if time.monotonic() > until:
            return None
        time.sleep(0.1)
    try:
        return first.result()
    except Exception:  # submitit's own: the job could not start the command
        return None


def _executor(
    folder: Path, launcher: str, jobs: int | None, options: Mapping[str, str]
) -> submitit.Executor:
    try:
        import submitit
    except ImportError:
        raise ConfigError(
            f"--launcher={launcher} needs submitit: pip install 'ssppo_jax[slurm]'"
        ) from None
    given: dict[str, Any] = {"timeout_min": MINUTES}
    if launcher == "slurm" and jobs:
        given["slurm_array_parallelism"] = jobs
    for name, text in options.items():
        own = name if name in SHARED or name.startswith("slurm_") else f"slurm_{name}"
        given[own] = _value(text)
    try:
        executor = submitit.AutoExecutor(folder, launcher, slurm_max_num_timeout=TIMEOUTS)
        executor.update_parameters(**given)
    except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"--launcher={launcher}: {error}") from None
    return executor


def _value(text: str) -> Any:
    """Return a number, list or dict that the text writes in Python, else the text."""
    try:
        return ast.literal_eval(text)
    except NO_LITERAL:
        return text


def _submit(executor: submitit.Executor, runs: list[Run]) -> list[Job]:
    """Submit runs; several at a time are one array."""
    before = [begin_output(run) for run in runs]
    try:
        with executor.batch():
            jobs = [executor.submit(Task(run.command, output_of(run))) for run in runs]
    except Exception as error:  # submitit's own, with what sbatch said
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"the jobs could not be submitted: {said[-1]}; look at the --job_option options"
        ) from error
    return [Job(*one) for one in zip(runs, jobs, before, strict=True)]


def _ended(at_work: list[Job], slurm: bool) -> list[Job]:
    """Return the jobs that are over.

    A job that left a result may still be in SLURM's queue: SLURM stopped it and will start it
    again. So the queue alone says what is over.
    """
    if not slurm:
        return [job for job in at_work if job.work.done()]
    known = _queue(at_work)
    return [] if known is None else [job for job in at_work if job.work.job_id not in known]


def _queue(at_work: list[Job]) -> set[str] | None:
    """Return which jobs wait or run; None if SLURM does not answer.

    submitit asks sacct, which is silent on a cluster without accounting.
    """
    jobs = f"--jobs={','.join(_arrays(at_work))}"
    command = ["squeue", "--noheader", "--array", "--format=%i", jobs]
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return None
    return set(asked.stdout.split())


def _arrays(at_work: list[Job]) -> list[str]:
    return sorted({job.work.job_id.partition("_")[0] for job in at_work})


def _tell(at_work: list[Job], slurm: bool) -> None:
    """Cancel the jobs that wait, and tell those at work to save."""
    if slurm and at_work:
        subprocess.run(["scancel", "--state=PENDING", *_arrays(at_work)])
        subprocess.run(["scancel", "--signal=TERM", "--state=RUNNING", *_arrays(at_work)])
    elif not slurm:
        for job in at_work:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.work.job_id), signal.SIGTERM)
