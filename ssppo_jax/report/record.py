"""What a run left in its folder, read for people: whatever is missing, torn or malformed is noted,
never fatal.

    config.json      {"config": the exact configuration, "command", and versions and devices by
    name} metrics.jsonl    {"phase", "step", "iteration", "values": numbers by name, "wall":
    {"time", "seconds", ...},
                     "nonfinite": [names]} a record; numbers may also stand beside "phase"
    pairs.jsonl      {"iteration", "prompt_id", "prompt", "winner", "loser", "win_rate" [2],
                     "target" [2], "similarity", "p_win", "tied"} a selected pair
    groups.jsonl     {"iteration", "prompt_id", "prompt", "answer" or null, "responses" [K],
                     "reward" [K], "advantage" [K], "length" [K]} a prompt with its K responses
    opponents.jsonl  {"iteration", "prompt_id", "prompt", "policy", "opponent", "p_win"} a response
    and its opponent's samples.jsonl    {"stage": "start" | "iter_k" | "final", "prompt_id",
    "prompt", "response", and "score" if known}
                     a held-out text, any number for one prompt
    result.json      {"win_rate", "low", "high", "prompts"}: the final win rate over the starting
                     policy; and of every reward or part of one {"X", "X_start", "X_gain_low",
                     "X_gain_high"}

A run trains on pairs, groups or opponents, and has the one file.
"""

from __future__ import annotations

import collections
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssppo_jax.report.plots import Line

CONTEXT_KEYS = ("phase", "step", "iteration", "time")
TRAINED_ON = ("pairs", "groups", "opponents")
LARGEST = 1e100  # beyond it the limits of an axis overflow


class Run(NamedTuple):
    """A run folder as found."""

    config: Any
    start: dict  # what config.json says beside the configuration: command, versions, devices
    metrics: list[dict]  # flat
    pairs: list[dict]
    groups: list[dict]
    opponents: list[dict]
    samples: list[dict]
    result: dict
    notes: list[str]  # what is missing or damaged


def read_run(folder: Path) -> Run:
    """Reads what is there; what is missing, torn or malformed goes to `notes`."""
    notes: list[str] = []
    config, result = (_read_json(folder / f"{name}.json", notes) for name in ("config", "result"))
    start: dict = {}
    if isinstance(config, dict) and "config" in config:
        start = {key: value for key, value in config.items() if key != "config"}
        config = config["config"]
    metrics = [_flat(record) for record in _read_lines(folder / "metrics.jsonl", notes)]
    files = {name: folder / f"{name}.jsonl" for name in TRAINED_ON}
    rows = {
        name: _read_lines(path, notes) if path.is_file() else [] for name, path in files.items()
    }
    if not any(path.is_file() for path in files.values()):
        notes.append("pairs.jsonl (groups.jsonl, opponents.jsonl) is missing.")
    samples = _read_lines(folder / "samples.jsonl", notes)
    return Run(
        config, start, metrics, **rows, samples=samples, result=_as_dict(result), notes=notes
    )


def _read_json(path: Path, notes: list[str]) -> Any:
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        notes.append(f"{path.name} is not valid JSON ({error}); left out.")
        return None


def _read_lines(path: Path, notes: list[str]) -> list[dict]:
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    rows, bad = [], []
    lines = text.split("\n")  # not splitlines: U+2028 may stand unescaped inside a JSON string
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif place == len(lines):
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
    if not rows:
        notes.append(f"{path.name} holds no records.")
    return rows


def _as_dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """A JSON number as a float (NaN and infinities included); None for anything else, booleans
    too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def finite(value: Any) -> float | None:
    """A JSON number that can be drawn; None for anything else."""
    found = number(value)
    return found if found is not None and abs(found) < LARGEST else None  # NaN fails too


def _flat(record: dict) -> dict:
    """A metrics record with its `values` and `wall` beside its phase, and NaN for the names in
    `nonfinite`."""
    context = {
        key: value for key, value in record.items() if key not in ("values", "wall", "nonfinite")
    }
    names = record.get("nonfinite")
    lost = (
        {name: math.nan for name in names if isinstance(name, str)}
        if isinstance(names, list)
        else {}
    )
    return _as_dict(record.get("values")) | lost | _as_dict(record.get("wall")) | context


def _numbers(record: dict) -> dict[str, float]:
    numbers = {key: number(value) for key, value in record.items() if key not in CONTEXT_KEYS}
    return {key: value for key, value in numbers.items() if value is not None}


# ---- series of the metrics -----------------------------------------------------------------------


def metric_lines(metrics: list[dict]) -> list[Line]:
    """Every number of flat metrics records as a series, in order of first appearance."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = collections.defaultdict(list)
    seen: collections.Counter[str] = collections.Counter()
    for record in metrics:
        phase = str(record.get("phase", "?"))
        x = number(record.get("step" if phase == "train" else "iteration"))
        x = float(seen[phase]) if x is None else x
        seen[phase] += 1
        for key, value in _numbers(record).items():
            points[phase, key].append((x, value))
    lines = []
    for (phase, key), values in points.items():
        x, y = np.array(values).T
        ok = np.isfinite(x) & (np.abs(y) < LARGEST)
        lines.append(Line(phase, key, x[ok], y[ok], int((~ok).sum())))
    return lines


def held_out(metrics: list[dict]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Of every quantity X that evaluations logged with X_low and X_high: iteration, X, low, high;
    NaN for a bound that is lost. The win rate comes last: it says nothing of the start."""
    rows: dict[str, list[tuple[float, float, float, float]]] = collections.defaultdict(list)
    evaluations = [record for record in metrics if record.get("phase") == "evaluate"]
    names = {
        key.removesuffix("_low") for record in evaluations for key in record if key.endswith("_low")
    }
    names &= {
        key.removesuffix("_high")
        for record in evaluations
        for key in record
        if key.endswith("_high")
    }
    for record in evaluations:
        iteration = finite(record.get("iteration"))
        for name in [key for key in record if key in names]:
            value = finite(record[name])
            if iteration is not None and value is not None:
                low, high = (finite(record.get(f"{name}_{end}")) for end in ("low", "high"))
                rows[name].append(
                    (iteration, value, *(math.nan if v is None else v for v in (low, high)))
                )
    return dict(sorted(rows.items(), key=lambda item: item[0] == "win_rate"))


def phase_seconds(metrics: list[dict]) -> dict[str, dict[float, float]]:
    """Seconds by phase and iteration: the records' own `seconds`, and where a phase has none, its
    share of `time`.

    That share is the time since the record before; the first record of the file and clock jumps
    backwards count 0."""
    own = {
        str(record.get("phase")) for record in metrics if number(record.get("seconds")) is not None
    }
    total: dict[str, dict[float, float]] = collections.defaultdict(
        lambda: collections.defaultdict(float)
    )
    before = None
    for record in (r for r in metrics if r.get("phase") != "iteration"):  # which sums up others
        phase, now = str(record.get("phase")), number(record.get("time"))
        elapsed = now - before if now is not None and before is not None else 0.0
        before = before if now is None else now
        spent = number(record.get("seconds")) if phase in own else elapsed
        iteration = number(record.get("iteration"))
        if (
            spent is not None
            and iteration is not None
            and math.isfinite(spent)
            and math.isfinite(iteration)
        ):
            total[phase][iteration] += max(spent, 0.0)
    return {phase: dict(spent) for phase, spent in total.items() if any(spent.values())}
