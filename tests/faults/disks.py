"""A disk that is full from a phase of a run on: the run says which file, and ends right with room.

The superuser gets a small tmpfs for each run. Others get RLIMIT_FSIZE: no file may grow."""

import contextlib
import functools
import importlib
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from kills import reference
from small import Outcome, difference, train

# From a call of this function on the disk is full: phase -> (module, function, which call, at most)
PHASES = {
    "locking the folder": ("ssppo_jax.distributed.stop", "RunLock.__enter__", 1),
    "claiming the folder": ("ssppo_jax.runs.folder", "claim", 1),
    "sampling the baseline": ("ssppo_jax.evaluate", "HeldOut.sample", 1),
    "sampling": ("ssppo_jax.rollout.collect", "sample_prompts", 2),
    "judging": ("ssppo_jax.oracles.protocol", "consult", 2),
    "keeping a verdict": ("ssppo_jax.oracles.store", "KeyedStore.add", 4),
    "scoring": ("ssppo_jax.rollout.score", "score_rows", 2),
    "writing a rollout": ("ssppo_jax.training.rollouts", "save_rollout", 2),
    "writing records": ("ssppo_jax.runs.folder", "append_records", 4),
    "logging": ("ssppo_jax.runs.metrics", "MetricLog.write", 12),
    "training": ("ssppo_jax.training.train", "take_rows", 4),
    "saving a checkpoint": ("ssppo_jax.weights.checkpoint", "Checkpoints.save", 4),
    "publishing a checkpoint": ("ssppo_jax.weights.checkpoint", "Checkpoints._publish", 4),
    "deleting a checkpoint": ("ssppo_jax.weights.checkpoint", "Checkpoints._prune", 4),
    "exporting": ("ssppo_jax.training.train", "Trainer._finish", 1),
    "writing weights": ("ssppo_jax.weights.hf", "save_tensors", 2),
    "copying the tokenizer": ("ssppo_jax.weights.hf", "_copy_tokenizer", 1),
    "writing the report": ("ssppo_jax.runs.report.build", "build_report", 1),
}
SIZE = 48 * 2**20  # bytes of the disk


def from_call(place: str, function: str, number: int, act: Callable[[], object]) -> None:
    """Call `act` before the number-th call of a module's function, or of a method."""
    owner = importlib.import_module(place)
    *path, name = function.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), []

    def replacement(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            act()
        return original(*args, **kwargs)

    setattr(owner, name, replacement)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small disk at a folder; say if that was allowed."""
    folder.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True
    ).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def fill(ballast: Path, room: int) -> None:
    """Fill a disk but for some bytes."""
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while file.write(bytes(1 << 20)):
            pass
    with open(ballast, "r+b") as file:
        file.truncate(ballast.stat().st_size - room)


def stop_growth(room: int) -> None:
    """Let no file of this process grow beyond some bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))


def full(tries: int, folder: Path, rng: random.Random) -> Iterator[Outcome]:
    """Fill the disk at each phase in turn, of a run with adapters, which exports most."""
    whole = reference("lora", folder)[0]
    for n in range(tries):
        phase = list(PHASES)[n % len(PHASES)]
        place, function, most = PHASES[phase]
        number, room = rng.randint(1, most), rng.choice([0, rng.randrange(1, 20_000)])
        with small_disk(folder / f"disk_{n}") as mounted:
            workdir, ballast = folder / f"disk_{n}" / "run", folder / f"disk_{n}" / "ballast"
            act = (
                functools.partial(fill, ballast, room)
                if mounted
                else functools.partial(stop_growth, room)
            )
            fault = functools.partial(from_call, place, function, number, act)
            ended = train("lora", workdir, before=fault, report="report" in phase)
            bad = verdict(ended, workdir)
            if bad is None and (workdir / "result.json").is_file():
                bad = says_result(workdir)
            ballast.unlink(missing_ok=True)
            bad = bad or train("lora", workdir).trouble(0) or difference(workdir, whole, "lora")
        how = "full" if mounted else "files of at most"
        yield Outcome(f"{phase}, call {number}: disk {how} ({room} bytes)", bad)


def verdict(ended, workdir: Path) -> str | None:
    """Why a run on a full disk ended badly. It names a file, or there was no more to write."""
    if ended.code == 0:
        return ended.trouble(0)
    if trouble := ended.trouble(74):
        return trouble
    return None if str(workdir) in ended.err else f"names no file: {ended.last_line}"


def says_result(workdir: Path) -> str | None:
    ended = train("lora", workdir)
    told = (workdir / "result.json").read_text().split() == ended.out.split("\nreport")[0].split()
    return ended.trouble(0) or (None if "win_rate" in ended.out or told else "no result is said")
