"""Trackers: where a run is shown besides its own folder. `TRACKERS` maps a name to a `Tracker`.

Every module of this folder with a module-level table `TRACKERS` is found here, so a tracker is
added by writing one file. `protocol` says what a tracker does. An installed package adds one by an
entry point in the group `ssppo_jax.trackers`, and a file of the user's by path/to/file.py:CLASS.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from ssppo_jax.config import discover, entry, flatten
from ssppo_jax.errors import ConfigError
from ssppo_jax.runs.report.card import public
from ssppo_jax.runs.trackers.follow import Follower
from ssppo_jax.runs.trackers.protocol import Run, Tracker

TRACKERS = discover(__path__, __name__, "TRACKERS")


def names_of(report_to: str) -> list[str]:
    """Return the trackers that `tracking.report_to` names, separated by commas.

    Raises:
      ConfigError: a name that is not known, or stands there twice.
    """
    names = [name.strip() for name in report_to.split(",")] if report_to.strip() else []
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name!r} stands there twice")
        entry(TRACKERS, name)
    return names


def made(config: ConfigDict) -> dict[str, Tracker]:
    """Return the configured trackers, which have sent nothing yet.

    Raises:
      ConfigError: a package or its login is missing, says what to type; or no tracker is made.
    """
    trackers = {name: TRACKERS[name]() for name in names_of(config.tracking.report_to)}
    for name, tracker in trackers.items():
        if not isinstance(tracker, Tracker):
            raise ConfigError(
                f"tracking.report_to={name} makes a {type(tracker).__name__}; name a class that"
                " inherits from ssppo_jax.runs.trackers.protocol.Tracker"
            )
    return trackers


def followers(trackers: Mapping[str, Tracker], config: ConfigDict, workdir: Path) -> list[Follower]:
    """Return a follower of the run's log for each tracker."""
    run = Run(
        folder=workdir,
        project=config.tracking.project,
        name=config.tracking.run_name or workdir.resolve().name,
        config=public(flatten(config)),
    )
    return [Follower(name, tracker, run) for name, tracker in trackers.items()]
