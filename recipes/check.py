"""Hold a recipe's results against its bounds. Every recipe of this folder ends here."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import ssppo_jax
from ssppo_jax.files import read_json

Bounds = Mapping[str, tuple[float, float]]  # metric: from, to


def check(config, run: Bounds, benchmark: Bounds | None = None) -> None:
    """Train in the folder that the command line names, and fail where a number is out of bounds.

        python recipes/NAME.py RUN [BENCHMARK]

    A run that is there is continued, or only read if it is finished. BENCHMARK is the folder of a
    benchmark of its policy (`python -m ssppo_jax benchmark`), whose numbers have bounds of their
    own.
    """
    if len(sys.argv) not in (2, 3):
        sys.exit(f"usage: python {sys.argv[0]} RUN [BENCHMARK]")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    result = ssppo_jax.train(config, sys.argv[1])
    _hold(result, run)
    if len(sys.argv) == 3:
        metrics = read_json(Path(sys.argv[2]) / "result.json")["metrics"]
        _hold({name: found["mean"] for name, found in metrics.items()}, benchmark or {})


def _hold(found: Mapping[str, float], bounds: Bounds) -> None:
    for name, (low, high) in bounds.items():
        assert low <= found[name] <= high, f"{name} is {found[name]:.4f}, not in [{low}, {high}]"
        print(f"{name} {found[name]:.4f} is in [{low}, {high}]", flush=True)
