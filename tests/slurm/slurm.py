"""Train and sweep through a SLURM of one node, kill on the way, and compare (`make slurm`).

    python tests/slurm/slurm.py [FOLDER]

Needs root and Debian's packages slurm-wlm and munge. Not run by pytest. It ends with a table: what
was done through SLURM, and whether its numbers are those of the same runs without SLURM."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster import free_port, missing, one_node

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))

from resuming import difference, surroundings  # noqa: E402

GRID = ROOT / "tests" / "slurm" / "grid.py"
PYTHON = (sys.executable, "-m", "ssppo_jax")
SECONDS = 1800.0  # that a part may take


def main() -> int:
    if os.geteuid() or missing():
        needs = f"root, and {', '.join(missing()) or 'nothing else'}"
        print(f"error: this needs {needs}: apt-get install slurm-wlm munge", file=sys.stderr)
        return 78
    folder = Path(
        sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="slurm_")
    ).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(surroundings(folder), PYTHONPATH=f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started ends too
    with one_node(folder / "slurm"):
        rows = [*two_processes(folder), *four_runs(folder)]
    print("| through SLURM | against | same numbers | seconds |\n|---|---|---|---|")
    for what, against, wrong, seconds in rows:
        print(f"| {what} | {against} | {wrong or 'yes'} | {seconds:.0f} |")
    print(f"the runs: {folder}")
    return int(any(row[2] for row in rows))


# ---- a run of two processes ----------------------------------------------------------------------


def two_processes(folder: Path) -> Iterator[tuple]:
    """Train once without SLURM, once through it, and once killed and started again."""
    plain, whole, killed = (folder / name for name in ("plain", "srun", "srun_killed"))
    where = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    alone = [begin(folder, *train(plain), *where, f"--process_id={i}") for i in range(2)]
    for process in alone:
        end(process)
    start = time.perf_counter()
    end(begin(folder, *srun(), *train(whole)))
    yield "two processes", "two processes", difference(whole, plain), time.perf_counter() - start
    start = time.perf_counter()
    job = begin(folder, *srun(), *train(killed))
    until(lambda: saved(killed), job)
    os.kill(process_of(killed, rank=1), signal.SIGKILL)
    end(job, well=False)
    assert not (killed / "result.json").exists(), "it ended before it could be killed"
    end(begin(folder, *srun(), *train(killed)))
    what = "two processes, process 1 killed (SIGKILL), the same command again"
    yield what, "two processes", difference(killed, plain), time.perf_counter() - start


def train(workdir: Path) -> list[str]:
    return [*PYTHON, "train", f"--config={GRID}", f"--workdir={workdir}"]


def srun() -> list[str]:
    return ["srun", "--ntasks=2", "--kill-on-bad-exit=1"]


def process_of(workdir: Path, rank: int) -> int:
    """Return the process of a run that SLURM gave a rank."""
    return next(pid for pid, said in at_work(workdir) if said["SLURM_PROCID"] == str(rank))


def at_work(workdir: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Find the processes of a run, each with its environment."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().split(b"\0")
            if words[1:3] == [b"-m", b"ssppo_jax"] and f"--workdir={workdir}".encode() in words:
                lines = (place / "environ").read_bytes().decode().split("\0")
                yield int(place.name), dict(line.split("=", 1) for line in lines if "=" in line)


# ---- a sweep of four -----------------------------------------------------------------------------


def four_runs(folder: Path) -> Iterator[tuple]:
    """Sweep without SLURM and through it; there one run is preempted and one loses its node."""
    plain, jobs = folder / "sweep", folder / "sweep_slurm"
    end(begin(folder, *sweep(plain)))
    start = time.perf_counter()
    options = ["--launcher=slurm", "--job_option=timeout_min=60", "--job_option=cpus_per_task=1"]
    job = begin(folder, *sweep(jobs), *options)
    names = sorted(path.parent.name for path in plain.glob("*/result.json"))
    until(lambda: saved(jobs / names[0]) and saved(jobs / names[1]), job)
    preempted, lost = (job_of(jobs / name) for name in names[:2])
    subprocess.run(["scancel", "--signal=USR2", preempted], check=True)
    subprocess.run(["scontrol", "requeue", lost], check=True)
    end(job)
    seconds = time.perf_counter() - start
    what = {names[0]: ", preempted (USR2)", names[1]: ", killed and requeued"}
    for name in names:
        again = (jobs / name / "output.log").read_text().count("resuming at iteration")
        assert again == (name in what), f"{name} was resumed {again} times"
        yield name + what.get(name, ""), "sweep", difference(jobs / name, plain / name), seconds
    tables = [(place / "sweep.md").read_text() for place in (plain, jobs)]
    yield "the sweep's table", "sweep", None if tables[0] == tables[1] else "differs", seconds


def sweep(workdir: Path) -> list[str]:
    return [*PYTHON, "sweep", f"--config={GRID}", f"--workdir={workdir}"]


def job_of(workdir: Path) -> str:
    """Return the job of a run that is at work."""
    _, said = next(at_work(workdir))
    return f"{said['SLURM_ARRAY_JOB_ID']}_{said['SLURM_ARRAY_TASK_ID']}"


# ---- parts ---------------------------------------------------------------------------------------


def begin(folder: Path, *command: str) -> subprocess.Popen:
    log = open(folder / "commands.log", "ab")  # noqa: SIM115  the child's
    log.write(f"\n$ {' '.join(command)}\n".encode())
    log.flush()
    return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)


def end(process: subprocess.Popen, *, well: bool = True) -> None:
    try:
        code = process.wait(SECONDS)
    finally:
        process.kill()
    if (code == 0) != well:
        raise SystemExit(f"error: exit code {code} of {' '.join(map(str, process.args))}")


def until(ready: Callable[[], object], process: subprocess.Popen) -> None:
    while not ready():
        if process.poll() is not None:
            raise SystemExit("error: it ended before it could be killed")
        time.sleep(0.05)


def saved(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("step_*"))


if __name__ == "__main__":
    sys.exit(main())
