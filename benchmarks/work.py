"""The work that every side does: shapes, prompts and what a worker prints. No framework is imported
here."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def _given(name: str, usual: str) -> tuple[int, ...]:
    return tuple(map(int, os.environ.get(name, usual).split()))


PROMPTS, SAMPLES, PROMPT, NEW = _given(
    "BENCH_SAMPLE", "8 4 128 128"
)  # "8 x 4", tokens of a prompt and a response
QUEUE, QUEUE_SAMPLES = _given(
    "BENCH_QUEUE", "32 8"
)  # "32 x 8", more rows than a peer decodes at a time
(PAIRS,) = _given("BENCH_PAIRS", "8")
(LONG,) = _given("BENCH_LONG", "512")  # tokens of a prompt that eight completions share
(LONG_TAILED,) = _given("BENCH_LENGTHS", "8")  # pairs whose responses differ in length
LONGEST = 1024  # tokens of the longest of them, T
SEED = 0
DTYPE = os.environ.get("BENCH_DTYPE", "float32")  # of weights and arithmetic
BETA, RATE = 1e-3, 5e-7


def prompts(count: int, length: int = PROMPT) -> np.ndarray:
    """Token ids [count, length] that mean nothing, none of them special."""
    return np.random.default_rng(0).integers(100, 40000, (count, length)).astype(np.int32)


def completions(count: int) -> np.ndarray:
    """Winner and loser of each prompt, [count, 2, NEW]."""
    return np.random.default_rng(1).integers(100, 40000, (count, 2, NEW)).astype(np.int32)


def lengths() -> np.ndarray:
    """Tokens of winner and loser of each prompt, [LONG_TAILED, 2], as
    `ssppo_jax.data.lengths.long_tailed` draws them. The file is loaded by itself, as a peer has no
    ssppo_jax."""
    path = Path(__file__).parents[1] / "ssppo_jax" / "data" / "lengths.py"
    spec = importlib.util.spec_from_file_location("lengths", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.long_tailed((LONG_TAILED, 2), longest=LONGEST, seed=SEED)


def long_completions() -> np.ndarray:
    """Winners and losers of those lengths, [LONG_TAILED, 2, LONGEST]; the rest is padding."""
    shape = (LONG_TAILED, 2, LONGEST)
    return np.random.default_rng(1).integers(100, 40000, shape).astype(np.int32)


WORDS = ("sea", "sun", "moon", "tree", "river", "stone", "cloud", "bird", "fish", "road", "wind")
OFFLINE_BETA, OFFLINE_RATE, EPOCHS = 0.1, 1e-6, 4


def preferences() -> tuple[list[dict], dict]:
    """PAIRS rows of a preference data set, of about 128 + 2 x 128 tokens each, and one that a run
    of ours holds out: that whose hash is the least."""
    rng = np.random.default_rng(2)

    def turn(role: str, words: int) -> list[dict]:
        return [{"role": role, "content": " ".join(rng.choice(WORDS, words))}]

    def place(row: dict) -> bytes:
        return hashlib.sha256(f"{SEED}:{row['id']}".encode()).digest()

    rows = [
        {
            "id": str(i),
            "prompt": turn("user", 96),
            "chosen": turn("assistant", int(rng.integers(96, 124))),
            "rejected": turn("assistant", int(rng.integers(96, 124))),
        }
        for i in range(PAIRS + 1)
    ]
    out = min(rows, key=place)
    return [row for row in rows if row is not out], out


def clocked(run: Callable[[], object], *, warm: int = 1) -> dict[str, float]:
    """Seconds of one call, and seconds that processors spent on it: the second is comparable where
    the machine is not idle."""
    for _ in range(warm):
        run()
    start, spent = time.perf_counter(), time.process_time()
    run()
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - spent,
    }


def timed(run: Callable[[], object], *, warm: int = 1) -> float:
    """Seconds of one call, after `warm` others that compile and fill caches."""
    for _ in range(warm):
        run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def host_peak() -> float:
    """GiB of memory that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def answer(tasks: dict[str, Callable[[str], dict]], peak: Callable[[], float] = host_peak) -> None:
    """Run the tasks named on the command line, FOLDER TASK..., and print one JSON line each: what
    `bench.py` reads.

    `peak` gives GiB of the memory that counts: the host's, or an accelerator's.
    """
    folder, *asked = sys.argv[1:]
    for task in asked:
        if task not in tasks:
            raise SystemExit(f"no task {task!r}; there is: {', '.join(tasks)}")
        values = tasks[task](folder)
        print(json.dumps({"task": task, "peak_gib": peak()} | values), flush=True)
