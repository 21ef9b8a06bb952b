"""A grid of runs: what a swept file asks for, checked before anything runs.

A swept file is a config file (it defines get_config) with a function sweep(add), which calls add
once per grid point with the keys that point changes. It may say which seeds (else the config's own)
and what to tabulate:

    SEEDS = (0, 1, 2)
    METRICS = ("evaluate/accuracy", "evaluate/accuracy:gain", "train/ratio/max:max")

    def sweep(add):
        for beta in (0.01, 0.05):
            add({"loss.beta": beta})
        add({"loss.beta": 0.05, "pairs.gate_level": "none"}, label="no gate")

Every point runs once per seed, all points with the first seed before any with the second: a third
of the time shows all of them. `add()` without keys is the config as it stands. A point that names a
component (`loss.name`) gives it its own defaults, as on the command line. Values have the type of
the key they replace. A label stands for the point's keys in tables, plots and folder names."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ssppo_jax import config as cfg
from ssppo_jax import schema
from ssppo_jax.errors import ConfigError
from ssppo_jax.runs import folder as run_folder
from ssppo_jax.sweep import measure
from ssppo_jax.sweep.measure import Measure

# This process must not touch a device: an accelerator belongs to one process, and the runs need it.
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
    values: dict[str, float | None] = dataclasses.field(
        default_factory=dict
    )  # by measure, once done
    missing: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # why a value is None, by measure
    result: dict[str, Any] = dataclasses.field(default_factory=dict)  # its result.json
    reason: str = ""  # of a failure: exit code or signal, and the last line the run printed
    seconds: float = 0.0  # of every attempt at it together

    @property
    def name(self) -> str:
        """Of its grid point."""
        return self.label or key_text(self.point)


class Grid(NamedTuple):
    runs: list[Run]
    measures: tuple[Measure, ...]


def plan(spec: str, workdir: Path, overrides: Mapping[str, str]) -> Grid:
    """Every run of the sweep, checked; those with a result are already `done`.

    Raises:
      ConfigError: no sweep(add), or points that cannot run (all of them, with the nearest keys), or
        a folder that holds a run with another configuration.
    """
    base = schema.load(spec, dict(overrides))
    module = cfg.load_module(spec)
    points, seeds, measures = _asked(spec, module, base.seed, overrides)
    before, runs, problems = _seconds_before(workdir), [], []
    for seed in seeds:
        for label, point in points:
            run, found = _planned(spec, workdir, overrides, label, point, seed)
            run.seconds = before.get(run.folder.name, 0.0) if run.folder.is_dir() else 0.0
            read_result(run, measures)
            runs.append(run)
            problems += [problem for problem in found if problem not in problems]
    cfg.raise_problems(problems)
    return Grid(runs, measures)


def read_result(run: Run, measures: tuple[Measure, ...]) -> None:
    """Mark a run that has a result.json as done, with what it measured."""
    path = run.folder / "result.json"
    if path.is_file():
        run.status, run.reason, run.result = "done", "", json.loads(path.read_text())
        run.values, run.missing = measure.measure_run(run.folder, measures)


def key_text(point: Point) -> str:
    return ",".join(f"{key}={text(value)}" for key, value in point.items()) or "as-configured"


def text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value).replace(" ", "")


# ---- what the file asks for ----------------------------------------------------------------------


def _asked(
    spec: str, module: ModuleType, own_seed: int, overrides: Mapping[str, str]
) -> tuple[list[tuple[str, Point]], tuple[int, ...], tuple[Measure, ...]]:
    """Its labelled points, its seeds, its measures."""
    if not hasattr(module, "sweep"):
        raise ConfigError(
            f"--config={spec}: it defines no sweep(add); a swept file must, next to get_config()"
        )
    points: list[tuple[str, Point]] = []

    def add(changes: Mapping[str, Any] | None = None, /, *, label: str = "", **more: Any) -> None:
        points.append(
            (label, {key: _plain(value) for key, value in {**(changes or {}), **more}.items()})
        )

    cfg.run_file(module, module.sweep, add)
    seeds = tuple(getattr(module, "SEEDS", (own_seed,)))
    measures, problems = _measures(spec, getattr(module, "METRICS", METRICS))
    problems = _point_problems(spec, points) + problems
    if not seeds or any(type(s) is not int or s < 0 for s in seeds) or len(set(seeds)) < len(seeds):
        problems.append(
            f"{spec}: SEEDS={seeds!r}: must be distinct whole numbers from 0, such as (0, 1, 2)"
        )
    swept = {key for _, point in points for key in point} | (
        {"seed"} if hasattr(module, "SEEDS") else set()
    )
    problems += [
        f"--config.{key}: {spec} sweeps it; leave it out" for key in sorted(swept & set(overrides))
    ]
    cfg.raise_problems(problems)
    return points, seeds, measures


def _point_problems(spec: str, points: list[tuple[str, Point]]) -> list[str]:
    problems = (
        []
        if points
        else [f"{spec}: sweep(add) added nothing; call add() for the config as it stands"]
    )
    bare = [point for _, point in points]
    problems += [f"{spec}: added twice: {key_text(p)}" for i, p in enumerate(bare) if p in bare[:i]]
    if any("seed" in point for point in bare):
        problems.append(f"{spec}: seeds are not swept by add; write SEEDS = (0, 1, 2) in the file")
    labels = [label for label, _ in points]
    wrong = [label for label in labels if not isinstance(label, str) or not label.isprintable()]
    problems += [
        f'{spec}: label={label!r}: must be a line of text, such as label="no gate"'
        for label in wrong
    ]
    names = [label or key_text(point) for label, point in points]
    twice = [
        name for i, name in enumerate(names) if labels[i] and name in names[:i] + names[i + 1 :]
    ]
    problems += [
        f"{spec}: label={name!r} names two points; give each its own"
        for name in dict.fromkeys(twice)
    ]
    return problems


def _measures(spec: str, wanted: Any) -> tuple[tuple[Measure, ...], list[str]]:
    """The file's METRICS, and what is wrong with them."""
    if not isinstance(wanted, tuple | list) or not wanted:
        return (), [
            f'{spec}: METRICS={wanted!r}: must be a list, such as METRICS = ("evaluate/win_rate",)'
        ]
    measures, problems = [], []
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
) -> tuple[Run, list[str]]:
    """One run, and what is wrong with it."""
    name = label or key_text(point)
    changes = {**overrides, **{key: text(value) for key, value in point.items()}, "seed": str(seed)}
    folder = workdir / _folder_name(f"{name},seed={seed}")
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    run = Run(
        point, label, seed, folder, [*TRAIN, f"--config={spec}", *flags, f"--workdir={folder}"]
    )
    try:
        config = schema.load(spec, changes)
    except ConfigError as error:
        return run, [f"{name}: {error}"]
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
    return run, problems


def _seconds_before(workdir: Path) -> dict[str, float]:
    """Seconds that earlier calls of this sweep spent on each run, by folder; a sweep.json that is
    none counts 0."""
    try:
        records = json.loads((workdir / "sweep.json").read_text())["runs"]
        return {Path(record["folder"]).name: float(record["seconds"]) for record in records}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _plain(value: Any) -> Any:
    """NumPy scalars (np.logspace is a natural grid) and lists as what a config holds."""
    value = value.item() if isinstance(value, np.generic) else value
    return tuple(value) if isinstance(value, list) else value


def _folder_name(label: str) -> str:
    """A label as a folder name: what a file system or shell may dislike is replaced, and a hash
    keeps it unique."""
    name = re.sub(r"[^\w.,=+-]", "_", label, flags=re.ASCII)
    if name == label and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
