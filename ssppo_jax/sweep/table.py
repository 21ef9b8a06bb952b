"""A sweep's results: mean and standard error over seeds of every measure, as JSON and as a Markdown
table."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from ssppo_jax.runs import folder as run_folder
from ssppo_jax.sweep.grid import Grid, Run, key_text, text

RUNS_NAMED = 5  # of those that lack a value


def summary(grid: Grid) -> list[dict]:
    """One row per grid point: for every measure mean, standard error and n over the seeds that
    finished and have it; and how many finished (n), failed or did not finish."""
    rows = []
    for name, mine in by_point(grid).items():
        rows.append(
            {
                "name": name,
                "point": mine[0].point,
                "metrics": {
                    str(m): _estimate([r.values[str(m)] for r in done(mine)]) for m in grid.measures
                },
                "n": len(done(mine)),
                "failed": sum(run.status == "failed" for run in mine),
                "unfinished": sum(run.status in ("stopped", "pending") for run in mine),
            }
        )
    return rows


def by_point(grid: Grid) -> dict[str, list[Run]]:
    """The runs of each grid point, by its name, in the grid's order."""
    points: dict[str, list[Run]] = {}
    for run in grid.runs:
        points.setdefault(run.name, []).append(run)
    return points


def done(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.status == "done"]


def table(grid: Grid) -> str:
    """The summary as a Markdown table; under it what the labels stand for, values that are missing,
    and failures."""
    rows, labelled = summary(grid), [run for run in grid.runs if run.label]
    keys = (
        ["point"] if labelled else list(dict.fromkeys(key for row in rows for key in row["point"]))
    )
    lines = [[*keys, *map(str, grid.measures), "n", "failed", "unfinished"]]
    lines += [["---"] * len(lines[0])]
    for row in rows:
        point = [text(row["point"][key]) if key in row["point"] else "" for key in keys]
        values = [_cell(row, str(m)) for m in grid.measures]
        counts = [str(row["n"]), str(row["failed"] or ""), str(row["unfinished"] or "")]
        lines.append([*([row["name"]] if labelled else point), *values, *counts])
    out = "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
    meanings = dict.fromkeys(f"- {run.label}: {key_text(run.point)}" for run in labelled)
    failures = [f"- {run.folder.name}: {run.reason}" for run in grid.runs if run.status == "failed"]
    for title, notes in (
        ("Labels", meanings),
        ("Values missing", _missing(grid)),
        ("Failed runs", failures),
    ):
        out += "\n".join([f"\n\n{title}:", *notes]) if notes else ""
    return out


def number(value: float | None, error: float | None = None) -> str:
    """value ± error: three decimals, or three digits where those would not tell the value; "-" for
    None."""
    if value is None:
        return "-"
    style = ".3f" if value == 0 or 0.01 <= abs(value) < 1000 else ".3g"
    return f"{value:{style}}" + ("" if error is None else f" ± {error:{style}}")


def write(grid: Grid, workdir: Path) -> None:
    """sweep.json, with every run's values, and sweep.md, as things stand."""
    records = [dataclasses.asdict(run) | {"folder": str(run.folder)} for run in grid.runs]
    run_folder.write_json(workdir / "sweep.json", {"runs": records, "table": summary(grid)})
    partial = workdir / "sweep.md.tmp"
    partial.write_text(table(grid) + "\n")
    os.replace(partial, workdir / "sweep.md")


def _estimate(values: list[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    n = len(known)
    return {
        "mean": float(np.mean(known)) if n else None,
        "standard_error": float(np.std(known, ddof=1) / math.sqrt(n)) if n > 1 else None,
        "n": n,
    }


def _cell(row: dict, measure: str) -> str:
    """mean ± standard error, or what there is instead of it."""
    found = row["metrics"][measure]
    if found["mean"] is None:
        return "-" if row["n"] else "failed" if row["failed"] else "not run"
    few = f" ({found['n']} of {row['n']})" if found["n"] < row["n"] else ""
    note = few or ("" if found["n"] > 1 else " (one seed)")
    return number(found["mean"], found["standard_error"]) + note


def _missing(grid: Grid) -> list[str]:
    """For every measure that finished runs lack: why, how many, and which."""
    finished, notes = done(grid.runs), []
    for measure in map(str, grid.measures):
        for why in dict.fromkeys(
            run.missing[measure] for run in finished if measure in run.missing
        ):
            lacking = [run.folder.name for run in finished if run.missing.get(measure) == why]
            which = "" if len(lacking) == len(finished) else f": {'; '.join(lacking[:RUNS_NAMED])}"
            which += "; ..." if which and len(lacking) > RUNS_NAMED else ""
            notes.append(
                f"- {measure}: {why} ({len(lacking)} of {len(finished)} finished runs{which})"
            )
    return notes
