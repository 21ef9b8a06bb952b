"""Two processes of one run, one of them killed or stopped: the other ends, and both continue."""

import random
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from children import Child, Ended
from small import Outcome, difference, start

PATIENCE = 20.0  # seconds that a process waits for the other
TO_END = 150.0  # seconds in which the one that is left must end; JAX's own heartbeat takes 100


def pair_of(workdir: Path) -> list[Child]:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    here = [f"--coordinator=localhost:{port}", "--num_processes=2"]
    return [
        start(
            "pair",
            workdir,
            f"distributed.timeout={PATIENCE}",
            options=(*here, f"--process_id={i}"),
        )
        for i in range(2)
    ]


def to_end(children: list[Child]) -> list[Ended]:
    return [child.end() for child in children]


def two(tries: int, folder: Path, rng: random.Random) -> Iterator[Outcome]:
    """Kill or stop one of two processes after a random time, by turns."""
    whole = folder / "twins_whole"
    ended = to_end(pair_of(whole))
    if trouble := ended[0].trouble(0) or ended[1].trouble(0):
        raise RuntimeError(f"the uninterrupted run of two processes: {trouble}")
    again = folder / "twins_again"
    ended = to_end(pair_of(again))
    if trouble := ended[0].trouble(0) or difference(again, whole, "pair"):
        raise RuntimeError(f"a second uninterrupted run of two processes: {trouble}")
    seconds = ended[0].seconds
    for n in range(tries):
        workdir, which, moment = folder / f"twins_{n}", n % 2, rng.uniform(0.1, 0.9) * seconds
        number = signal.SIGKILL if n % 4 < 2 else signal.SIGSTOP
        children = pair_of(workdir)
        if not children[which].wait(moment):
            children[which].kill(number)
        left = children[1 - which].end(TO_END)
        bad = None if left.code != 124 else f"the other does not end within {TO_END:g} s"
        if "Traceback" in left.err:
            bad = f"the other shows a traceback: {left.last_line}"
        children[which].kill()
        children[which].end()
        if bad is None:
            ended = to_end(pair_of(workdir))
            bad = ended[0].trouble(0) or ended[1].trouble(0) or difference(workdir, whole, "pair")
        yield Outcome(f"process {which}: {number.name} after {moment:.1f} of {seconds:.1f} s", bad)
        if bad is None:
            shutil.rmtree(workdir)
