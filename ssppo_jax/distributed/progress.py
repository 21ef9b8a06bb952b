"""Show a progress bar with a rate for every long phase; plain lines without a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

from ssppo_jax.distributed import hosts

SECONDS_PER_LINE = 5.0


def bar(work: Iterable | int | None, *, what: str, unit: str, show: bool = True) -> tqdm:
    """Make a tqdm over `work`: iterate over it, or give a total and call `.update(n)` inside a
    `with`.

    On a terminal and in a notebook it is a bar; elsewhere (a log file) a line every 5 seconds and
    at the end, which may say the last one again. Silent on every process but the first, and
    everywhere when the environment has SSPPO_PROGRESS=off.

    Args:
        work: what to iterate over, or how many units there are.
        what: the phase, in front of the bar ("generate").
        unit: what is counted and timed ("samples").
        show: False for a phase that runs beside another.
    """
    silent = not (show and hosts.is_first()) or os.environ.get("SSPPO_PROGRESS") == "off"
    counted = work is None or isinstance(work, int)
    options: dict[str, Any] = {"iterable": None, "total": work} if counted else {"iterable": work}
    if _is_notebook(sys.stderr):
        options["leave"] = False  # of a run's many bars the cell keeps none
    elif not sys.stderr.isatty():
        options |= {
            "file": _Lines(sys.stderr),
            "mininterval": SECONDS_PER_LINE,
            "bar_format": _line_format(work),
        }
    return _Bar(
        **options,
        desc=what,
        unit=f" {unit}",
        miniters=1,
        dynamic_ncols=True,
        disable=silent,
    )


class _Bar(tqdm):
    monitor_interval = 0  # no watcher thread: it would outlive the bar and meet later forks


class _Lines:
    """Turn tqdm's carriage returns and padding into lines."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()


def _is_notebook(stream: TextIO) -> bool:
    """Return whether text goes to a notebook's cell, which is no terminal and redraws all the
    same.
    """
    return type(stream).__module__.startswith("ipykernel.")


def _line_format(work: Iterable | int | None) -> str:
    if isinstance(work, int) or hasattr(work, "__len__"):
        return (
            "{desc}: {n_fmt}/{total_fmt}{unit} in {elapsed}, {remaining} left, {rate_fmt}{postfix}"
        )
    return "{desc}: {n_fmt}{unit} in {elapsed}, {rate_fmt}"
