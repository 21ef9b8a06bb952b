"""Draw a sweep: where every grid point ended (sweep.png), and how it got there (curves.png)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ssppo_jax.errors import DataError
from ssppo_jax.runs.report.plots import COLOURS, drawing, shorten, whole_numbers
from ssppo_jax.sweep.grid import Grid
from ssppo_jax.sweep.measure import Measure, read_courses
from ssppo_jax.sweep.table import by_point, done, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINESTYLES = ("-", "--", ":", "-.")  # 8 colours in 4 styles: the first 32 points differ at a glance
MOST_STEPS = 60  # points of a curve; longer courses are drawn as means of equal slices
LONGEST_NAME = 90
DASHED: dict[str, Any] = {"color": "0.6", "linewidth": 0.8, "linestyle": "--"}
ALARM = "#c0392b"


def plot_points(grid: Grid, path: Path) -> None:
    """Draw one panel for each measure: a dot for each seed, and mean and standard error on top."""
    rows, points = summary(grid), by_point(grid)
    names = []
    for row in rows:
        failed = f"  ({row['failed']} failed)" if row["failed"] else ""
        names.append(shorten(row["name"], LONGEST_NAME) + failed)
    across, down = _panels(len(grid.measures))
    size = (0.6 + 0.065 * max(map(len, names)) + 3.1 * across, down * (1.0 + 0.26 * len(rows)))
    with drawing(size) as figure:
        axes = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
        for ax, measure in zip(axes, grid.measures, strict=False):
            _mark_unchanged(ax, measure)
            for y, row in enumerate(rows):
                seeds = [run.values[str(measure)] for run in done(points[row["name"]])]
                _draw_point(ax, y, row, str(measure), [v for v in seeds if v is not None])
            ax.set_title(str(measure))
            ax.locator_params(axis="x", nbins=5)
            ax.set_yticks(range(len(rows)), names)
            ax.set_ylim(len(rows) - 0.5, -0.5)
        for ax in axes[len(grid.measures) :]:
            ax.set_visible(False)
        figure.supxlabel("dots: seeds; circle and bar: mean ± standard error", fontsize=8)
        figure.savefig(path, dpi=150)


def _draw_point(ax: Axes, y: int, row: dict, measure: str, seeds: list[float]) -> None:
    ax.scatter(seeds, [y] * len(seeds), s=14, color="0.65", zorder=2)
    mean, error, _ = row["metrics"][measure].values()
    if mean is not None:
        ax.errorbar(mean, y, xerr=error, fmt="o", ms=5, color=COLOURS[0], capsize=3, zorder=3)
        return
    why = "no value" if row["n"] else "failed" if row["failed"] else "not run"
    over = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    place = ax.get_yaxis_transform()
    ax.text(0.02, y, why, va="center", color=ALARM, transform=place, bbox=over)


def _panels(n: int) -> tuple[int, int]:
    """Return how many panels stand across and down."""
    across = {1: 1, 2: 2, 4: 2}.get(n, 3)
    return across, math.ceil(n / across)


def _mark_unchanged(ax: Axes, measure: Measure) -> None:
    """Draw where nothing has changed: a win rate of 0.5, a gain of 0."""
    if measure.how == "gain":
        ax.axvline(0.0, **DASHED)
    elif measure.name.startswith("win_rate"):
        ax.axvline(0.5, **DASHED)


def plot_courses(grid: Grid, path: Path) -> None:
    """Draw one panel for each logged quantity, with a line for each grid point.

    A line is the mean over the point's finished seeds; its band is ± the standard error.
    """
    sources = list(dict.fromkeys(measure.source for measure in grid.measures))
    labels, courses = [], []
    for name, runs in by_point(grid).items():
        labels.append(shorten(name, LONGEST_NAME) + ("" if done(runs) else " (not finished)"))
        courses.append([_courses(run.folder) for run in done(runs)])
    across, down = _panels(len(sources))
    width = max(6.4, 4.2 * across)
    columns = max(1, int(width / (0.6 + 0.062 * max(map(len, labels)))))
    height = 2.7 * down + 0.17 * math.ceil(len(courses) / columns) + 0.3
    with drawing((width, height)) as figure:
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for ax, source in zip(axes, sources, strict=False):
            lines = [[seed[source] for seed in seeds if source in seed] for seeds in courses]
            _draw_courses(ax, source, labels, lines)
        for ax in axes[len(sources) :]:
            ax.set_visible(False)
        handles = axes[0].get_legend_handles_labels()[0]
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=3)
        figure.savefig(path, dpi=150)


def _courses(folder: Path) -> dict[str, pd.Series]:
    try:
        return read_courses(folder / "metrics.jsonl")
    except DataError:  # the table says so
        return {}


def _draw_courses(ax: Axes, source: str, labels: list[str], lines: list[list[pd.Series]]) -> None:
    """Draw every line, and name it in the legend even when there is nothing to draw."""
    band = 0.14 if len(lines) <= len(COLOURS) else 0.05
    for i, (label, seeds) in enumerate(zip(labels, lines, strict=True)):
        colour, style = COLOURS[i % len(COLOURS)], LINESTYLES[i // len(COLOURS) % 4]
        mean = mean_course(seeds)
        marker = "o" if len(mean) <= 15 else ""
        look: dict[str, Any] = {"marker": marker, "markersize": 2.5, "linestyle": style}
        ax.plot(mean.index, mean["mean"], label=label, color=colour, **look)
        low, high = mean["mean"] - mean.error, mean["mean"] + mean.error
        ax.fill_between(mean.index, low, high, color=colour, alpha=band, linewidth=0)
    ax.set_title(source)
    longest = max((len(seed) for seeds in lines for seed in seeds), default=0)
    if not longest:
        ax.set(xticks=[], yticks=[])
        why = "no finished run logged it"
        ax.text(0.5, 0.5, why, ha="center", color=ALARM, transform=ax.transAxes)
        return
    what = "step" if source.startswith("train/") else "iteration"
    whole_numbers(ax, f"{what}, in {MOST_STEPS} slices" if longest > MOST_STEPS else what)
    if source.startswith("evaluate/win_rate"):
        ax.axhline(0.5, **DASHED)


def mean_course(seeds: list[pd.Series]) -> pd.DataFrame:
    """Return `mean` and standard `error` over seeds, by the values of x that all seeds have.

    More than MOST_STEPS values of x are first averaged in equal slices. One seed has an error of
    0. A mean is NaN where a seed's value is.
    """
    first = [seed[~seed.index.duplicated()] for seed in seeds]
    y = pd.concat(first, axis=1, join="inner").sort_index() if seeds else pd.DataFrame()
    slices = np.arange(len(y)) * min(len(y), MOST_STEPS) // max(len(y), 1)
    y = y.reset_index()
    y = y.groupby(slices).mean().where(y.notna().groupby(slices).all())
    y = y.set_index(y.columns[0])
    error = y.sem(axis=1, skipna=False) if len(seeds) > 1 else 0.0
    return pd.DataFrame({"mean": y.mean(axis=1, skipna=False), "error": error})
