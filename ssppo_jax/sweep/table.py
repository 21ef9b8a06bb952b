"""Summarise a sweep: mean and standard error over seeds, as JSON and as a Markdown table."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ssppo_jax.config.nodes import shown
from ssppo_jax.files import write_json, write_lines
from ssppo_jax.sweep.grid import Grid, Run, key_text

RUNS_NAMED = 5  # of those that lack a value


def by_point(grid: Grid) -> dict[str, list[Run]]:
    """Return the runs of each grid point, by its name, in the grid's order."""
    points: dict[str, list[Run]] = {}
    for run in grid.runs:
        points.setdefault(run.name, []).append(run)
    return points


def done(runs: list[Run]) -> list[Run]:
    """Return the runs that finished."""
    return [run for run in runs if run.status == "done"]


def summary(grid: Grid) -> list[dict]:
    """Return one row for each grid point.

    A row holds for every measure the mean, the standard error and n, over the seeds that finished
    and have it. It also holds how many runs finished (n), failed or did not finish.
    """
    measures = [str(measure) for measure in grid.measures]
    records = [{"name": run.name, "status": run.status} | run.values for run in grid.runs]
    frame = pd.DataFrame(records, columns=["name", "status", *measures])
    frame = frame.astype(dict.fromkeys(measures, float))  # None becomes NaN, which is not counted
    statistics = frame.groupby("name", sort=False)[measures].agg(["mean", "sem", "count"])
    rows = []
    for name, runs in by_point(grid).items():
        counts = Counter(run.status for run in runs)
        row: dict[str, Any] = {"name": name, "point": runs[0].point}
        row["metrics"] = {m: _estimate(statistics[m].loc[name]) for m in measures}
        row |= {"n": counts["done"], "failed": counts["failed"]}
        rows.append(row | {"unfinished": counts["stopped"] + counts["pending"]})
    return rows


def _estimate(found: pd.Series) -> dict[str, Any]:
    known = [None if np.isnan(value) else float(value) for value in (found["mean"], found["sem"])]
    return {"mean": known[0], "standard_error": known[1], "n": int(found["count"])}


def table(grid: Grid) -> str:
    """Return the summary as a Markdown table, with its notes under it.

    The notes tell what the labels stand for, which values are missing, and which runs failed.
    """
    rows, labelled = summary(grid), [run for run in grid.runs if run.label]
    keys = list(dict.fromkeys(key for row in rows for key in row["point"]))
    head = ["point"] if labelled else keys
    lines = [[*head, *map(str, grid.measures), "n", "failed", "unfinished"]]
    lines += [["---"] * len(lines[0])]
    for row in rows:
        point = [shown(row["point"][key]) if key in row["point"] else "" for key in keys]
        values = [_cell(row, str(measure)) for measure in grid.measures]
        counts = [str(row["n"]), str(row["failed"] or ""), str(row["unfinished"] or "")]
        lines.append([*([row["name"]] if labelled else point), *values, *counts])
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    out = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    failed = [run for run in grid.runs if run.status == "failed"]
    notes = {
        "Labels": list(dict.fromkeys(f"- {run.label}: {key_text(run.point)}" for run in labelled)),
        "Values missing": _missing(grid),
        "Failed runs": [f"- {run.folder.name}: {run.reason}" for run in failed],
    }
    for title, found in notes.items():
        out += "\n".join([f"\n\n{title}:", *found]) if found else ""
    return out


def _cell(row: dict, measure: str) -> str:
    """Return mean ± standard error, or what there is instead of it."""
    found = row["metrics"][measure]
    if found["mean"] is None:
        return "-" if row["n"] else "failed" if row["failed"] else "not run"
    few = f" ({found['n']} of {row['n']})" if found["n"] < row["n"] else ""
    note = few or ("" if found["n"] > 1 else " (one seed)")
    return number(found["mean"], found["standard_error"]) + note


def number(value: float | None, error: float | None = None) -> str:
    """Return "value ± error"; "-" for None.

    Numbers have three decimals, or three digits where those would not tell the value.
    """
    if value is None:
        return "-"
    style = ".3f" if value == 0 or 0.01 <= abs(value) < 1000 else ".3g"
    return f"{value:{style}}" + ("" if error is None else f" ± {error:{style}}")


def _missing(grid: Grid) -> list[str]:
    """Return a note for every measure that finished runs lack: why, how many, and which."""
    finished, notes = done(grid.runs), []
    for measure in map(str, grid.measures):
        lacking: dict[str, list[str]] = {}
        for run in finished:
            if measure in run.missing:
                lacking.setdefault(run.missing[measure], []).append(run.folder.name)
        for why, names in lacking.items():
            more = "; ..." if len(names) > RUNS_NAMED else ""
            which = f": {'; '.join(names[:RUNS_NAMED])}{more}"
            which = "" if len(names) == len(finished) else which
            count = f"{len(names)} of {len(finished)} finished runs"
            notes.append(f"- {measure}: {why} ({count}{which})")
    return notes


def write(grid: Grid, workdir: Path) -> None:
    """Write sweep.json, with every run's values, and sweep.md, as things stand."""
    records = [dataclasses.asdict(run) | {"folder": str(run.folder)} for run in grid.runs]
    write_json(workdir / "sweep.json", {"runs": records, "table": summary(grid)})
    write_lines(workdir / "sweep.md", [table(grid), *other_points(grid, workdir)])


def other_points(grid: Grid, workdir: Path) -> list[str]:
    """Say which finished runs of the folder are of other points or seeds than the table's."""
    own = {run.folder.name for run in grid.runs}
    found = sorted(path.parent.name for path in workdir.glob("*/result.json"))
    other = [name for name in found if name not in own]
    if not other:
        return []
    return [
        "",
        f"Not in this table: {len(other)} finished run(s) of other points or seeds, such as"
        f" {other[0]}.",
    ]
