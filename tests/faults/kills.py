"""SIGKILL at random places of a run; the same command, started again, ends like the whole run."""

import atexit
import functools
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from children import at_change, die
from small import Outcome, difference, start, train


def reference(kind: str, folder: Path) -> tuple[Path, float, int]:
    """Return an uninterrupted run, the seconds that one takes, and how often it changes a file.

    Raises:
      RuntimeError: it fails, or a second one ends differently.
    """
    whole, again = folder / f"{kind}_whole", folder / f"{kind}_again"
    if not (whole / "result.json").is_file():
        ended = train(kind, whole)
        if trouble := ended.trouble(0):
            raise RuntimeError(f"the uninterrupted {kind} run: {trouble}")
    noted = folder / f"{kind}_changes"

    def note():
        seen = at_change(again, -1, die)
        atexit.register(lambda: noted.write_text(str(len(seen))))

    ended = train(kind, again, before=note)
    trouble = ended.trouble(0) or difference(again, whole, kind)
    if trouble:
        raise RuntimeError(f"a second uninterrupted {kind} run: {trouble}")
    shutil.rmtree(again)
    return whole, ended.seconds, int(noted.read_text())


def kill(kind: str, tries: int, folder: Path, rng: random.Random) -> Iterator[Outcome]:
    """Kill runs of one kind: by turns after a random time, and before a random change of a file.

    One in four is killed a second time while it resumes.
    """
    whole, seconds, changes = reference(kind, folder)
    for n in range(tries):
        workdir = folder / f"{kind}_{n}"
        places, bad = [], None
        for _ in range(1 + (rng.random() < 0.25)):
            if n % 2:
                number = rng.randrange(1, changes + 1)
                places.append(f"before change {number} of {changes}")
                fault = functools.partial(at_change, workdir, number, die)
                ended = train(kind, workdir, before=fault)
            else:
                moment = rng.uniform(0, seconds)
                places.append(f"after {moment:.2f} of {seconds:.2f} s")
                child = start(kind, workdir)
                if not child.wait(moment):
                    child.kill()
                ended = child.end()
            if ended.code not in (0, -9):
                bad = ended.trouble(0)
        bad = bad or train(kind, workdir).trouble(0) or difference(workdir, whole, kind)
        yield Outcome(f"{kind}: killed {', and again '.join(places)}", bad)
        if bad is None:
            shutil.rmtree(workdir)
