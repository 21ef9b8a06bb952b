"""Say what a tracker does. A file of one's own looks like this:

    from ssppo_jax.runs.trackers.protocol import Tracker

    class Lines(Tracker):
        def start(self, run):
            self.file = open(f"{run.name}.txt", "a", encoding="utf-8")
            return run.name

        def log(self, step, values, time):
            print(step, values, file=self.file)

        def finish(self, how):
            self.file.close()

Methods are called by one thread of the tracker's own, one after the other, and may raise or take
their time: the run does not wait for them (`follow.py`).
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from ssppo_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Run:
    """Hold what a tracker is told of a run."""

    folder: Path
    project: str
    name: str
    config: dict[str, Any]  # {"a.b": value}
    id: str = ""  # what `start` returned when the run began; empty: it begins now


class Tracker:
    """Show a run somewhere. The constructor may raise a `ConfigError`, before anything runs."""

    remade = False  # True: `start` empties what was shown, and gets the whole log again

    def start(self, run: Run) -> str:
        """Begin the run there, or continue the one of `run.id`; return its id."""
        raise NotImplementedError

    def log(self, step: int, values: dict[str, float], time: float) -> None:
        """Show the numbers of one record, named phase/name. `time`: seconds since 1970.

        Steps may come again, and fall: phases without steps of their own stand at the planned ones.
        """

    def table(self, name: str, step: int, rows: list[dict[str, Any]]) -> None:
        """Show rows that have the same columns."""

    def attach(self, path: Path) -> None:
        """Put a file beside the numbers."""

    def finish(self, how: str) -> None:
        """End: `how` is finished, interrupted (it may continue), or failed."""


def package(name: str, extra: str) -> ModuleType:
    """Import a tracker's package.

    Raises:
      ConfigError: it is not installed; says what to type.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"tracking.report_to: {extra} needs the package {error.name or name}; type: pip install"
            f" 'ssppo_jax[{extra}]'"
        ) from error
