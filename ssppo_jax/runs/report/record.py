"""Read what a run left in its folder; note what is missing, torn or malformed.

config.json      {"config": the exact configuration, "command", and versions and devices by name}
metrics.jsonl    a record: {"phase", "step", "iteration", "values": numbers by name,
                 "wall": {"time", "seconds", ...}}; null stands for a number that was not finite;
                 numbers may also stand beside "phase"
pairs.jsonl      a selected pair: {"iteration", "prompt_id", "prompt", "winner", "loser",
                 "win_rate" [2], "target" [2], "similarity", "p_win", "tied"}
groups.jsonl     a prompt with its K responses: {"iteration", "prompt_id", "prompt",
                 "answer" or null, "responses" [K], "reward" [K], "advantage" [K], "length" [K]}
opponents.jsonl  a response and its opponent's: {"iteration", "prompt_id", "prompt", "policy",
                 "opponent", "p_win"}
responses.jsonl  a response that is imitated: {"iteration", "prompt_id", "prompt", "response"}
samples.jsonl    a held-out text, any number for one prompt: {"stage": "start" | "iter_k" |
                 "final", "prompt_id", "prompt", "response", and "score" if known}
result.json      of given responses, a metric X of held-out rows: {"X", "X_low", "X_high"}; else
                 {"win_rate", "low", "high", "prompts"}: the final win rate over the starting
                 policy. For a reward or a part of one, X: {"X", "X_start", "X_gain_low",
                 "X_gain_high"}

A run trains on pairs, groups, opponents or responses, and has the one file.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ssppo_jax.data import GIVEN
from ssppo_jax.files import read_lines

CONTEXT_KEYS = ("phase", "step", "iteration", "nonfinite")
TRAINED_ON = ("pairs", "groups", "opponents", "responses")
LARGEST = 1e100  # beyond it the limits of an axis overflow


class Run(NamedTuple):
    """A run folder as found."""

    config: Any
    start: dict  # what config.json says beside the configuration: command, versions, devices
    metrics: pd.DataFrame  # see `metric_frame`
    pairs: list[dict]
    groups: list[dict]
    opponents: list[dict]
    responses: list[dict]
    samples: list[dict]
    result: dict
    notes: list[str]  # what is missing or damaged

    @property
    def given(self) -> bool:
        """Return true if the run learns from responses of the data: it samples and judges none."""
        return learns_from_given(self.config)


def learns_from_given(config: Any) -> bool:
    """Return true for the settings of a run whose data hold the responses."""
    name = config.get("data.source.name") if isinstance(config, dict) else None
    return isinstance(name, str) and GIVEN.get(name, False)


# ---- files ---------------------------------------------------------------------------------------


def read_run(folder: Path) -> Run:
    """Read the files of a run folder."""
    notes: list[str] = []
    config, result = (_read_json(folder / f"{name}.json", notes) for name in ("config", "result"))
    start: dict = {}
    if isinstance(config, dict) and "config" in config:
        start = {key: value for key, value in config.items() if key != "config"}
        config = config["config"]
    metrics = metric_frame(_read_lines(folder / "metrics.jsonl", notes))
    rows: dict[str, list[dict]] = {name: [] for name in TRAINED_ON}
    present = [name for name in TRAINED_ON if (folder / f"{name}.jsonl").is_file()]
    for name in present:
        rows[name] = _read_lines(folder / f"{name}.jsonl", notes)
    if not present:
        notes.append("pairs.jsonl (groups.jsonl, opponents.jsonl, responses.jsonl) is missing.")
    no_samples = learns_from_given(config) and not (folder / "samples.jsonl").is_file()
    samples = [] if no_samples else _read_lines(folder / "samples.jsonl", notes)
    result = _as_dict(result)
    return Run(config, start, metrics, **rows, samples=samples, result=result, notes=notes)


def _read_json(path: Path, notes: list[str]) -> Any:
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return None
    try:
        return json.loads(path.read_bytes().decode(errors="replace"))
    except (ValueError, RecursionError) as error:
        notes.append(f"{path.name} is not valid JSON ({error}); left out.")
        return None


def _read_lines(path: Path, notes: list[str]) -> list[dict]:
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return []
    rows, bad = [], []
    data = path.read_bytes()
    lines = read_lines(data)
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode(errors="replace"))
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif place == len(lines) and not data.endswith(b"\n"):
            notes.append(
                f"{path.name}: the last line is torn (the run stopped while writing it); left out."
            )
        else:
            bad.append(place)
    if bad:
        listed = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        notes.append(
            f"{path.name}: {len(bad)} lines are not JSON objects and are left out (line {listed})."
        )
    if not (rows or bad):
        notes.append(f"{path.name} holds no records.")
    return rows


def _as_dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """Return a JSON number as a float, NaN and infinities included; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def finite(value: Any) -> float | None:
    """Return a JSON number that can be drawn as a float; None for anything else."""
    found = number(value)
    return found if found is not None and abs(found) < LARGEST else None  # NaN fails too


def finite_list(value: Any) -> list[float | None]:
    """Return what `finite` makes of every entry of a JSON list; [] for anything else."""
    return [finite(entry) for entry in value] if isinstance(value, list) else []


# ---- metrics -------------------------------------------------------------------------------------


def metric_frame(records: list[dict]) -> pd.DataFrame:
    """Return one row for every number of every record, in the order of the file.

    Columns: `record` (its place in the file), `phase`, `step`, `iteration`, `key`, `value`. A null
    becomes NaN.
    """
    rows = []
    for place, record in enumerate(records):
        phase = str(record.get("phase", "?"))
        step, iteration = finite(record.get("step")), finite(record.get("iteration"))
        beside = {key: value for key, value in record.items() if key not in CONTEXT_KEYS}
        values, wall = _as_dict(record.get("values")), _as_dict(record.get("wall"))
        for key, value in (values | wall | beside).items():
            found = math.nan if value is None else number(value)
            if found is not None:
                rows.append((place, phase, step, iteration, key, found))
    columns = ["record", "phase", "step", "iteration", "key", "value"]
    types = {"step": float, "iteration": float, "value": float}
    return pd.DataFrame(rows, columns=columns).astype(types)


def held_out(metrics: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return every quantity X that evaluations logged with X_low and X_high.

    Columns: `iteration`, `value`, `low`, `high`, where a bound that was lost is NaN. The win rate
    comes last, because it does not tell where the run started.
    """
    rows = metrics[(metrics.phase == "evaluate") & metrics.iteration.notna()]
    wide = rows.pivot(index=["record", "iteration"], columns="key", values="value")
    wide = wide.where(wide.abs() < LARGEST)
    keys = list(map(str, wide.columns))
    names = [key for key in keys if {f"{key}_low", f"{key}_high"} <= {*keys}]
    found = {}
    for name in sorted(names, key=lambda name: name == "win_rate"):
        columns = {"value": wide[name], "low": wide[f"{name}_low"], "high": wide[f"{name}_high"]}
        one = pd.DataFrame(columns).dropna(subset="value")
        if len(one):
            found[name] = one.reset_index("iteration")
    return found


def phase_seconds(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return seconds by iteration (rows) and phase (columns).

    A phase whose records hold no `seconds` is given its share of `time`: what passed since the
    record before. The first record of the file and clock jumps backwards count 0.
    """
    rows = metrics[metrics.key.isin(["time", "seconds"]) & metrics.iteration.notna()]
    rows = rows[rows.phase != "iteration"]  # it sums up the others
    clock = rows.pivot(index=["record", "phase", "iteration"], columns="key", values="value")
    clock = clock.reindex(columns=["time", "seconds"])
    elapsed = clock.time.ffill().diff()
    own = clock.seconds.groupby("phase").transform("count") > 0
    spent = clock.seconds.where(own, elapsed).clip(lower=0)
    spent = spent.where(spent < LARGEST).groupby(["iteration", "phase"], sort=False).sum()
    by_phase = spent.unstack("phase", fill_value=0, sort=False).sort_index()
    return by_phase.loc[:, by_phase.any()]
