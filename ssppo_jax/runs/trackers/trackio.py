"""trackio, in TRACKIO_DIR of this machine, or in a Space of the Hub (TRACKIO_SPACE_ID)."""

from __future__ import annotations

import contextlib
import secrets
import sys
from pathlib import Path
from typing import Any

from ssppo_jax.runs.trackers.protocol import Run, Tracker, package


class Trackio(Tracker):
    """Log to a run of trackio.

    It finds a run by its name alone, so the name gets an ending of its own.
    """

    def __init__(self):
        self.trackio = package("trackio", "trackio")

    def start(self, run: Run) -> str:
        name = run.id or f"{run.name}-{secrets.token_hex(2)}"
        with contextlib.redirect_stdout(sys.stderr):  # standard output is the run's result
            self.run = self.trackio.init(
                project=run.project,
                name=name,
                config=run.config,
                resume="allow",
                embed=False,
            )
        return self.run.name

    def log(self, step: int, values: dict[str, float], time: float) -> None:
        self.run.log(values, step=step)

    def table(self, name: str, step: int, rows: list[dict[str, Any]]) -> None:
        cells = [list(row.values()) for row in rows]
        self.run.log({name: self.trackio.Table(columns=list(rows[0]), data=cells)}, step=step)

    def attach(self, path: Path) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            # The name is the project's: with the file's alone, runs would replace each other's.
            self.run.log_artifact(str(path), f"{self.run.name}-{path.name}", type=path.stem)

    def finish(self, how: str) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.run.finish()


TRACKERS = {"trackio": Trackio}
