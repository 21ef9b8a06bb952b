"""Put faults into small runs and count the bad outcomes (`make faults`). Not run by pytest.

    python tests/faults/faults.py [--tries=N] [--kinds=WORD,WORD] [--seed=N] [--output=FILE]

Prints a table (kind, tries, bad outcomes) and every bad outcome, and writes each try as a line of
JSON. Exit code 0 if no outcome is bad. docs/reliability.md says what each kind does."""

import argparse
import functools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

# Before JAX is imported: one CPU device, and a cache of compiled programs that all runs share.
os.environ.update(
    JAX_PLATFORMS="cpu",
    XLA_FLAGS="",
    SSPPO_CACHE=os.path.join(tempfile.gettempdir(), "ssppo_faults", "models"),
    JAX_COMPILATION_CACHE_DIR=os.path.join(tempfile.gettempdir(), "ssppo_faults", "compiled"),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="0",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    TF_CPP_MIN_LOG_LEVEL="3",
)

import attempts
import disks
import flips
import kills
import malformed
import small
import transformers  # noqa: F401
import twins

# What the children would import for themselves, seconds each.
from ssppo_jax.distributed.progress import bar

KINDS = {
    **{f"kill {kind}": (functools.partial(kills.kill, kind), 20) for kind in small.KINDS},
    "flip": (flips.flip, 200),
    "flip and resume": (flips.resume, 10),
    "full disk": (disks.full, 2 * len(disks.PHASES)),
    "two processes": (twins.two, 8),
    "malformed input": (malformed.refused, len(malformed.CASES)),
}
if attempts.TABLE.is_file():
    KINDS["sandbox"] = (attempts.attack, None)  # pytest knows how many there are


def main() -> int:
    args = _arguments()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="faults_"))
    folder.mkdir(parents=True, exist_ok=True)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    judge = _judge()
    found: dict[str, list[small.Outcome]] = {}
    try:
        with open(args.output, "w", encoding="utf-8") as record:
            for kind in args.kinds:
                run, most = KINDS[kind]
                count = min(n for n in (most, args.tries, sys.maxsize) if n)
                found[kind] = []
                with bar(count if most else None, what=kind, unit="tries") as progress:
                    for outcome in run(count, folder, random.Random(f"{args.seed} {kind}")):
                        found[kind].append(outcome)
                        line = {"kind": kind, **outcome._asdict(), "time": round(time.time(), 1)}
                        record.write(json.dumps(line, ensure_ascii=False) + "\n")
                        record.flush()
                        if outcome.bad:
                            progress.write(f"BAD {outcome.what}: {outcome.bad}")
                        progress.update()
    finally:
        os.kill(judge, signal.SIGKILL)
        os.waitpid(judge, 0)
    print(table(found))
    bad = sum(outcome.bad is not None for outcomes in found.values() for outcome in outcomes)
    if not bad and not args.folder:
        shutil.rmtree(folder)
    print(f"{bad} bad outcomes; every try: {args.output}" + (f"; runs: {folder}" if bad else ""))
    return int(bad > 0)


def table(found: dict[str, list[small.Outcome]]) -> str:
    """The table of docs/reliability.md."""
    rows = [(kind, len(o), sum(x.bad is not None for x in o)) for kind, o in found.items()]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = ["| kind | tries | bad outcomes |", "|---|---|---|"]
    return "\n".join(lines + [f"| {kind} | {tries} | {bad} |" for kind, tries, bad in rows])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("faults.py", description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=0, help="at most so many of each kind")
    parser.add_argument("--kinds", default="", help=f"words of: {', '.join(KINDS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the random places")
    parser.add_argument(
        "--output", default="runs/faults.jsonl", help="one line of JSON for each try"
    )
    parser.add_argument("--folder", default="", help="keep the runs here")
    args = parser.parse_args()
    words = args.kinds.split(",")
    args.kinds = [kind for kind in KINDS if any(word in kind for word in words)]
    if not args.kinds or args.tries < 0:
        parser.error(f"--kinds is one or more of {', '.join(KINDS)}; --tries is at least 0")
    return args


def _judge() -> int:
    """Start the judge in a process of its own; its address is in FAULTS_JUDGE."""
    read, write = os.pipe()
    alive, held = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(held)
        os.dup2(alive, 0)
        small.serve_judge(write)
    os.close(write)
    os.environ["FAULTS_JUDGE"] = os.read(read, 200).decode()
    return pid


if __name__ == "__main__":
    sys.exit(main())
