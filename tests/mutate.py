"""Breaks the losses one line at a time, and lists the breaks that no test sees (`make mutate`).

    python tests/mutate.py [WORD ...]      only mutants whose file, function or reason holds one of
    the words

Every mutant of `mutants.py` is made in a copy of the repository, never in the source, and the tests
of its file run on it until one fails. A mutant that survives is a test that is missing. A mutant
whose text is gone, or that crashes for a name that does not exist, proves nothing and is an error.
Exit code 0 if all were killed. Not run by pytest."""

import ast
import concurrent.futures
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import mutants

ROOT = Path(__file__).parents[1]
COPIED = ("ssppo_jax", "tests", "pytest.ini", "pyproject.toml")
SENSELESS = ("NameError", "UnboundLocalError", "AttributeError", "ImportError", "IndexError")
SECONDS = 300  # a mutant that takes longer hangs, which a person would see too: killed


class Mutant(NamedTuple):
    """One break: in a function of a file of the package, old text becomes new text."""

    file: str
    function: str
    old: str
    new: str
    why: str

    def __str__(self):
        return f"{self.file} {self.function or 'module'}: {self.why}"


MUTANTS = [Mutant(file, *row) for file, (rows, _) in mutants.FILES.items() for row in rows]


def broken(source: str, mutant: Mutant) -> str:
    """The source with the mutant in it. Raises ValueError unless the old text stands exactly once
    in its function."""
    lines, start, stop = source.splitlines(keepends=True), 0, len(source.splitlines())
    if mutant.function:
        found = [
            n for n in ast.walk(ast.parse(source)) if getattr(n, "name", "") == mutant.function
        ]
        if len(found) != 1:
            raise ValueError(f"{mutant}: {len(found)} functions of this name, need 1")
        start, stop = found[0].lineno - 1, found[0].end_lineno
    body = "".join(lines[start:stop])
    if body.count(mutant.old) != 1:
        raise ValueError(f"{mutant}: {mutant.old!r} stands {body.count(mutant.old)} times, need 1")
    changed = "".join(lines[:start]) + body.replace(mutant.old, mutant.new) + "".join(lines[stop:])
    compile(changed, mutant.file, "exec")  # a mutant that is no Python proves nothing
    return changed


def checkout(folder: Path) -> Path:
    """A copy of what the tests need."""
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


def passes(folder: Path, tests: list[str]) -> tuple[bool, str]:
    """Whether the tests pass in this copy, and the first that did not. Byte code is not kept: it
    would be stale."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "--no-header", "--tb=line", *tests]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, env=_environment()
        )
    except subprocess.TimeoutExpired:
        return False, f"took over {SECONDS} s"
    senseless = [
        line
        for line in done.stdout.splitlines()
        if any(f": {name}: " in line for name in SENSELESS)
    ]
    if senseless or done.returncode not in (0, 1):  # 2: the tests could not even be collected
        raise RuntimeError(
            f"pytest ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    failed = [
        line.split(" - ")[0]
        for line in done.stdout.splitlines()
        if line.startswith(("FAILED", "ERROR"))
    ]
    return done.returncode == 0, failed[0] if failed else ""


def _environment() -> dict[str, str]:
    return {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTEST_ADDOPTS")
    }  # the copy alone


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(word in str(m) for word in words)]
    if not chosen:
        print(
            f"error: no mutant has {' or '.join(words)}; leave the words out to run all"
            f" {len(MUTANTS)}"
        )
        return 2
    for mutant in chosen:
        broken((ROOT / "ssppo_jax" / mutant.file).read_text(), mutant)
    start, jobs = time.monotonic(), min(os.cpu_count() or 1, len(chosen))
    with (
        tempfile.TemporaryDirectory() as scratch,
        concurrent.futures.ThreadPoolExecutor(jobs) as pool,
    ):
        copies: queue.Queue[Path] = queue.Queue()
        for job in range(jobs):
            (Path(scratch) / str(job)).mkdir()
            copies.put(checkout(Path(scratch) / str(job)))

        def one(mutant: Mutant) -> bool:
            folder = copies.get()
            file = folder / "ssppo_jax" / mutant.file
            source = file.read_text()
            try:
                file.write_text(broken(source, mutant))
                survived, line = passes(folder, mutants.FILES[mutant.file][1])
            finally:
                file.write_text(source)
                copies.put(folder)
            print(
                f"{'SURVIVED' if survived else 'killed  '} {mutant}"
                + ("" if survived else f"   [{line}]"),
                flush=True,
            )
            return survived

        tests = dict.fromkeys(test for m in chosen for test in mutants.FILES[m.file][1])
        whole, line = passes(Path(scratch) / "0", list(tests))
        if not whole:
            print(f"error: the tests fail without a mutant: {line}")
            return 2
        survivors = [m for m, alive in zip(chosen, pool.map(one, chosen), strict=True) if alive]
    print(
        f"\n{len(chosen)} mutants, {len(chosen) - len(survivors)} killed,"
        f" {time.monotonic() - start:.0f} s"
    )
    for file in mutants.FILES:
        of_file = [m for m in chosen if m.file == file]
        alive = sum(m.file == file for m in survivors)
        print(
            f"  {file}: {len(of_file) - alive} of {len(of_file)}"
            if of_file
            else f"  {file}: none chosen"
        )
    for mutant in survivors:
        print(f"SURVIVED {mutant}: {mutant.old!r} -> {mutant.new!r}")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
