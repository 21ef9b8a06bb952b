"""What a response's code may try against the run and the machine: the sandbox's table of tests."""

import os
import random
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from pathlib import Path

from small import ROOT, Outcome

TABLE = ROOT / "tests" / "oracles" / "test_attacks.py"


def attack(tries: int, folder: Path, rng: random.Random) -> Iterator[Outcome]:
    """Run the attempts of the table, or a random choice of them, each in every way there is."""
    names = [line for line in pytest(folder, "--collect-only").stdout.splitlines() if "::" in line]
    chosen = names if tries >= len(names) else rng.sample(names, tries)
    report = folder / "attempts.xml"
    pytest(folder, *chosen, f"--junitxml={report}")
    for test in xml.parse(report).iter("testcase"):
        wrong = [found for found in test if found.tag in ("failure", "error")]
        yield Outcome(test.get("name", ""), wrong[0].get("message") if wrong else None)


def pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    files = [] if any("::" in argument for argument in arguments) else [str(TABLE)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", *files, *arguments],
        cwd=ROOT,
        env=os.environ | {"SSPPO_ATTACKS": "all", "SSPPO_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
