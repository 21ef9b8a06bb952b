"""One flipped bit in a checkpoint is noticed, and a run falls back on the checkpoint before."""

import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from kills import reference
from small import Outcome, difference, start, train

from ssppo_jax.weights.checkpoint import find_damage


def flip_bit(file: Path, rng: random.Random) -> tuple[int, int]:
    """Flip a random bit of a file; return where, so that the same call undoes it."""
    at, bit = rng.randrange(file.stat().st_size), 1 << rng.randrange(8)
    change(file, at, bit)
    return at, bit


def change(file: Path, at: int, bit: int) -> None:
    with open(file, "r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ bit]))


def flip(tries: int, folder: Path, rng: random.Random) -> Iterator[Outcome]:
    """Flip a bit in every file of a run's checkpoints in turn, at random places."""
    checkpoints = sorted((reference("pair", folder)[0] / "checkpoints").iterdir())
    files = [p for c in checkpoints for p in c.rglob("*") if p.is_file() and p.stat().st_size]
    rng.shuffle(files)
    for n in range(tries):
        file = files[n % len(files)]
        owner = next(c for c in checkpoints if c in file.parents)
        at, bit = flip_bit(file, rng)
        damage = find_damage(owner)
        change(file, at, bit)
        bad = None if damage else "not noticed"
        if find_damage(owner):
            bad = "a checkpoint that is whole is called damaged"
        yield Outcome(f"byte {at} of {file.relative_to(owner.parent)}, bit {bit}", bad)


def resume(tries: int, folder: Path, rng: random.Random) -> Iterator[Outcome]:
    """Stop runs at a random time, flip a bit in their newest checkpoint, and start them again."""
    whole, seconds, _ = reference("pair", folder)
    for n in range(tries):
        workdir, saved = folder / f"flipped_{n}", []
        while len(saved) < 2:  # with one checkpoint there is none to fall back on
            shutil.rmtree(workdir, ignore_errors=True)
            child = start("pair", workdir)
            if not child.wait(rng.uniform(0.3, 1.0) * seconds):
                child.kill(rng.choice([signal.SIGKILL, signal.SIGTERM]))
            child.end()
            saved = sorted(workdir.glob("checkpoints/step_*"))
        if (workdir / "result.json").is_file():
            (workdir / "result.json").unlink()
        file = rng.choice([p for p in saved[-1].rglob("*") if p.is_file() and p.stat().st_size])
        at, _ = flip_bit(file, rng)
        bad = train("pair", workdir).trouble(0) or difference(workdir, whole, "pair")
        yield Outcome(f"byte {at} of {file.relative_to(workdir)}, and resumed", bad)
        if bad is None:
            shutil.rmtree(workdir)
