"""Plan a grid of runs: read what a swept file asks for, and check it before anything runs.

A swept file is a config file (it defines get_config) with a function sweep(add). That function
calls add once for each grid point, with the keys that the point changes. The file may also say
which seeds (else the config's own) and what to tabulate:

    SEEDS = (0, 1, 2)
    METRICS = ("evaluate/accuracy", "evaluate/accuracy:gain", "train/ratio/max:max")

    def sweep(add):
        for beta in (0.01, 0.05):
            add({"loss.beta": beta})
        add({"loss.beta": 0.05, "pairs.gate_level": "none"}, label="no gate")

Every point runs once for each seed, all points with the first seed before any with the second.
`add()` without keys is the config as it stands. A point that names a component (`loss.name`) gives
it its own defaults, as on the command line. Values have the type of the key they replace. A label
stands for the point's keys in tables, plots and folder names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ssppo_jax import config as cfg
from ssppo_jax import schema
from ssppo_jax.config.nodes import shown
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.files import read_json
from ssppo_jax.runs import folder as run_folder
from ssppo_jax.sweep import measure
from ssppo_jax.sweep.measure import Measure

# A process for each run: an accelerator belongs to one process, so this one must not touch it.
TRAIN = (sys.executable, "-m", "ssppo_jax", "train")
LONGEST_NAME = 120
METRICS = ("evaluate/win_rate",)

Point = dict[str, Any]  # {"loss.beta": 0.1}


@dataclasses.dataclass
class Run:
    """One process: a grid point with a seed, and what became of it."""

    point: Point
    label: str  # the point's, or ""
    seed: int
    folder: Path
    command: list[str]
    status: str = "pending"  # done, failed, stopped, or pending
    # Once done, by measure: the value, and why it is None.
    values: dict[str, float | None] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    result: dict[str, Any] = dataclasses.field(default_factory=dict)  # its result.json
    reason: str = ""  # of a failure: exit code or signal, and the last line the run printed
    seconds: float = 0.0  # of every attempt at it together

    @property
    def name(self) -> str:
        """Return the name of its grid point."""
        return self.label or key_text(self.point)


class Grid(NamedTuple):
    """The runs of a sweep, and what is measured of each."""

    runs: list[Run]
    measures: tuple[Measure, ...]


def plan(spec: str, workdir: Path, overrides: Mapping[str, str]) -> Grid:
    """Return every run of the sweep, checked; those with a result are already `done`.

    Raises:
      ConfigError: there is no sweep(add), some points cannot run (all are named, with the nearest
        keys), or a folder holds a run with another configuration.
    """
    base = schema.load(spec, dict(overrides))
    module = cfg.load_module(spec)
    points, seeds, measures = _asked(spec, module, base.seed, overrides)
    before, runs, problems = _seconds_before(workdir), [], []
    for seed in seeds:
        for label, point in points:
            run, found, longer = _planned(spec, workdir, overrides, label, point, seed)
            run.seconds = before.get(run.folder.name, 0.0) if run.folder.is_dir() else 0.0
            if not longer:
                read_result(run, measures)
            runs.append(run)
            problems += [problem for problem in found if problem not in problems]
    cfg.raise_problems(problems)
    return Grid(runs, measures)


def read_result(run: Run, measures: tuple[Measure, ...]) -> None:
    """Mark a run that has a result.json as done, with what it measured."""
    path = run.folder / "result.json"
    if path.is_file():
        run.status, run.reason, run.result = "done", "", read_json(path)
        run.values, run.missing = measure.measure_run(run.folder, measures)


def key_text(point: Point) -> str:
    """Return the keys of a point with their values, as in "loss.beta=0.1"."""
    return ",".join(f"{key}={shown(value)}" for key, value in point.items()) or "as-configured"


# ---- what the file asks for ----------------------------------------------------------------------


def _asked(
    spec: str, module: ModuleType, own_seed: int, overrides: Mapping[str, str]
) -> tuple[list[tuple[str, Point]], tuple[int, ...], tuple[Measure, ...]]:
    """Return the file's points with their labels, its seeds and its measures."""
    if not hasattr(module, "sweep"):
        raise ConfigError(
            f"--config={spec}: it defines no sweep(add); a swept file must, next to get_config()"
        )
    points: list[tuple[str, Point]] = []

    def add(changes: Mapping[str, Any] | None = None, /, *, label: str = "", **more: Any) -> None:
        if not isinstance(changes, Mapping | None):
            raise ConfigError(
                f'add({changes!r}): give a dictionary, as in add({{"loss.name": "dpo"}})'
            )
        given = dict(changes or {}) | more
        points.append((label, {key: _plain(value) for key, value in given.items()}))

    cfg.run_file(module, module.sweep, add)
    given = getattr(module, "SEEDS", (own_seed,))
    seeds = tuple(given) if isinstance(given, tuple | list | range) else ()
    measures, problems = _measures(spec, getattr(module, "METRICS", METRICS))
    problems = _point_problems(spec, points) + problems
    numbers = all(type(s) is int and s >= 0 for s in seeds)
    if not (seeds and numbers and len(set(seeds)) == len(seeds)):
        problems.append(
            f"{spec}: SEEDS={given!r}: must be distinct whole numbers from 0, such as (0, 1, 2)"
        )
    swept = {"seed"} if hasattr(module, "SEEDS") else set()
    swept = swept.union(*(point for _, point in points)) & set(overrides)
    problems += [f"--config.{key}: {spec} sweeps it; leave it out" for key in sorted(swept)]
    cfg.raise_problems(problems)
    return points, seeds, measures


def _point_problems(spec: str, points: list[tuple[str, Point]]) -> list[str]:
    """Return what is wrong with points and labels, whatever their keys mean."""
    problems: list[str] = []
    if not points:
        problems.append(f"{spec}: sweep(add) added nothing; call add() for the config as it stands")
    bare = [point for _, point in points]
    if any(not isinstance(key, str) for point in bare for key in point):
        return [f"{spec}: the keys of a point are texts, such as 'loss.beta'"]
    problems += [f"{spec}: added twice: {key_text(p)}" for i, p in enumerate(bare) if p in bare[:i]]
    if any("seed" in point for point in bare):
        problems.append(f"{spec}: seeds are not swept by add; write SEEDS = (0, 1, 2) in the file")
    for label, _ in points:
        if not isinstance(label, str) or not label.isprintable():
            problems.append(
                f'{spec}: label={label!r}: must be a line of text, such as label="no gate"'
            )
    names = [label or key_text(point) for label, point in points]
    twice = {label for label, _ in points if label and names.count(label) > 1}
    for label in sorted(twice, key=names.index):
        problems.append(f"{spec}: label={label!r} names two points; give each its own")
    return problems


def _measures(spec: str, wanted: Any) -> tuple[tuple[Measure, ...], list[str]]:
    """Return the file's METRICS, and what is wrong with them."""
    if not isinstance(wanted, tuple | list) or not wanted:
        example = 'METRICS = ("evaluate/win_rate",)'
        return (), [f"{spec}: METRICS={wanted!r}: must be a list, such as {example}"]
    measures: list[Measure] = []
    problems: list[str] = []
    for one in wanted:
        try:
            found = measure.parse(one)
        except ValueError as error:
            problems.append(f"{spec}: METRICS: {one!r}: {error}")
            continue
        if found in measures:
            problems.append(f"{spec}: METRICS: {one!r} stands there twice")
        measures.append(found)
    return tuple(measures), problems


# ---- its runs ------------------------------------------------------------------------------------


def _planned(
    spec: str, workdir: Path, overrides: Mapping[str, str], label: str, point: Point, seed: int
) -> tuple[Run, list[str], bool]:
    """Return one run, what is wrong with it, and whether it makes a finished run longer."""
    name = label or key_text(point)
    changes = dict(overrides) | {key: shown(value) for key, value in point.items()}
    changes["seed"] = str(seed)
    folder = workdir / _folder_name(f"{name},seed={seed}")
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    command = [*TRAIN, f"--config={spec}", *flags, f"--workdir={folder}"]
    run = Run(point, label, seed, folder, command)
    try:
        config = schema.load(spec, changes)
    except ConfigError as error:
        return run, [f"{name}: {error}"], False
    flat, problems = cfg.flatten(config), []
    for key, value in point.items():
        actual = flat[key if key in flat else f"{key}.name"]
        if isinstance(value, str) != isinstance(actual, str) or actual != value:
            problems.append(
                f"{name}: {key} takes {type(actual).__name__}, as in {actual!r}, not {value!r}"
            )
    other = run_folder.differences(folder, config)
    if other:
        problems.append(
            f"{folder} holds a run with another configuration: {'; '.join(other)}; give a new"
            " --workdir"
        )
    return run, problems, not problems and run_folder.is_longer(folder, config)


def _seconds_before(workdir: Path) -> dict[str, float]:
    """Return the seconds that earlier calls of this sweep spent on each run, by folder.

    A sweep.json that cannot be read counts 0.
    """
    try:
        records = read_json(workdir / "sweep.json")["runs"]
        return {Path(record["folder"]).name: float(record["seconds"]) for record in records}
    except (OSError, DataError, KeyError, TypeError):
        return {}


def _plain(value: Any) -> Any:
    """Return what NumPy gives (np.logspace is a natural grid) and lists as what a config holds."""
    value = value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
    return tuple(value) if isinstance(value, list) else value


def _folder_name(label: str) -> str:
    """Return a label as a folder name, without what a file system or shell may dislike.

    A hash keeps a changed name unique.
    """
    name = re.sub(r"[^\w.,=+-]", "_", label, flags=re.ASCII)
    if name == label and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
