"""A sweep's pictures: where every grid point ended (sweep.png), and how it got there
(curves.png)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ssppo_jax.errors import DataError
from ssppo_jax.report.plots import COLOURS
from ssppo_jax.sweep.grid import Grid
from ssppo_jax.sweep.measure import Course, read_courses
from ssppo_jax.sweep.table import by_point, done, summary

LINESTYLES = ("-", "--", ":", "-.")  # 8 colours in 4 styles: the first 32 points differ at a glance
MOST_STEPS = 60  # points of a curve; longer courses are drawn as means of equal slices
LONGEST_NAME = 90
STYLE = {
    "text.parse_math": False,  # a value may hold $
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def plot_points(grid: Grid, path: Path) -> None:
    """One panel per measure: every seed a dot, mean and standard error on top; failed points are
    named so."""
    rows, points = summary(grid), by_point(grid)
    names = [
        _shorten(row["name"]) + (f"  ({row['failed']} failed)" if row["failed"] else "")
        for row in rows
    ]
    across, down = _panels(len(grid.measures))
    size = (0.6 + 0.065 * max(map(len, names)) + 3.1 * across, down * (1.0 + 0.26 * len(rows)))
    with _figure(path, size) as figure:
        axes = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
        for ax, measure in zip(axes, grid.measures, strict=False):
            _zero_lines(ax, measure.name, measure.how)
            for y, row in enumerate(rows):
                _point(
                    ax,
                    y,
                    row,
                    str(measure),
                    [run.values[str(measure)] for run in done(points[row["name"]])],
                )
            ax.set_title(str(measure))
            ax.locator_params(axis="x", nbins=5)
            ax.set_yticks(range(len(rows)), names)
            ax.set_ylim(len(rows) - 0.5, -0.5)
            ax.grid(axis="y", alpha=0.2)
        for ax in axes[len(grid.measures) :]:
            ax.set_visible(False)
        figure.supxlabel("dots: seeds; circle and bar: mean ± standard error", fontsize=8)


def _point(ax: Any, y: int, row: dict, measure: str, values: list[float | None]) -> None:
    known = [value for value in values if value is not None]
    ax.scatter(known, [y] * len(known), s=14, color="0.65", zorder=2)
    found = row["metrics"][measure]
    if found["mean"] is not None:
        ax.errorbar(
            found["mean"],
            y,
            xerr=found["standard_error"],
            fmt="o",
            ms=5,
            color="#1f6feb",
            capsize=3,
            zorder=3,
        )
        return
    why = "no value" if row["n"] else "failed" if row["failed"] else "not run"
    over = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    ax.text(
        0.02, y, why, va="center", color="#c0392b", transform=ax.get_yaxis_transform(), bbox=over
    )


def _panels(n: int) -> tuple[int, int]:
    """Across and down."""
    across = {1: 1, 2: 2, 4: 2}.get(n, 3)
    return across, math.ceil(n / across)


def _zero_lines(ax: Any, name: str, how: str) -> None:
    """Where nothing has changed: a win rate of 0.5, a gain of 0."""
    if how == "gain":
        ax.axvline(0.0, color="0.6", linewidth=0.8, linestyle="--")
    elif name.startswith("win_rate"):
        ax.axvline(0.5, color="0.6", linewidth=0.8, linestyle="--")


def plot_courses(grid: Grid, path: Path) -> None:
    """One panel per logged quantity: a line per grid point, mean over its finished seeds, band ±
    standard error."""
    sources = list(dict.fromkeys(measure.source for measure in grid.measures))
    courses = {
        name: [_courses(run.folder, sources) for run in done(runs)]
        for name, runs in by_point(grid).items()
    }
    names = {
        name: f"{_shorten(name)}{'' if found else ' (not finished)'}"
        for name, found in courses.items()
    }
    across, down = _panels(len(sources))
    width = max(6.4, 4.2 * across)
    columns = max(1, int(width / (0.6 + 0.062 * max(map(len, names.values())))))
    height = 2.7 * down + 0.17 * math.ceil(len(names) / columns) + 0.3
    with _figure(path, (width, height)) as figure:
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for ax, source in zip(axes, sources, strict=False):
            for i, (name, seeds) in enumerate(courses.items()):
                style = {
                    "color": COLOURS[i % len(COLOURS)],
                    "linestyle": LINESTYLES[i // len(COLOURS) % 4],
                }
                band = 0.14 if len(courses) <= len(COLOURS) else 0.05
                _curve(
                    ax, [seed[source] for seed in seeds if source in seed], names[name], style, band
                )
            _label(ax, source, courses.values())
        for ax in axes[len(sources) :]:
            ax.set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=3)


def _courses(folder: Path, sources: list[str]) -> dict[str, Course]:
    try:
        return read_courses(folder / "metrics.jsonl", sources)[0]
    except DataError:  # the table says so
        return {}


def _curve(ax: Any, seeds: list[Course], name: str, style: dict, band: float) -> None:
    """A line that the legend names even when there is nothing to draw."""
    x, mean, error = mean_course(seeds)
    marker = "o" if 0 < len(x) <= 15 else ""
    ax.plot(x, mean, label=name, marker=marker, markersize=2.5, linewidth=1.4, **style)
    ax.fill_between(x, mean - error, mean + error, color=style["color"], alpha=band, linewidth=0)


def mean_course(seeds: list[Course]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, and mean and standard error of the seeds' values at each x that all have; NaN where one is
    not finite.

    More than MOST_STEPS values of x are first averaged in equal slices. One seed has an error of 0.
    """
    if not seeds:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    x = seeds[0].x
    for seed in seeds:
        x = np.intersect1d(x, seed.x)
    y = np.stack([seed.y[np.searchsorted(seed.x, x)] for seed in seeds])  # [seeds, x]
    slices = np.array_split(np.arange(len(x)), min(len(x), MOST_STEPS))
    x = np.array([x[s].mean() for s in slices])
    y = np.array([y[:, s].mean(axis=1) for s in slices]).reshape(len(slices), len(seeds))
    error = y.std(axis=1, ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else np.zeros(len(x))
    return x, y.mean(axis=1), error


def _label(ax: Any, source: str, courses: Iterable[list[dict[str, Course]]]) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_title(source)
    if not any(source in seed for seeds in courses for seed in seeds):
        ax.set(xticks=[], yticks=[])
        ax.text(
            0.5,
            0.5,
            "no finished run logged it",
            ha="center",
            color="#c0392b",
            transform=ax.transAxes,
        )
        return
    longest = max(
        (len(seed[source].x) for seeds in courses for seed in seeds if source in seed), default=0
    )
    what = "step" if source.startswith("train/") else "iteration"
    ax.set_xlabel(f"{what}, in {MOST_STEPS} slices" if longest > MOST_STEPS else what)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    ax.grid(alpha=0.2)
    if source.startswith("evaluate/win_rate"):
        ax.axhline(0.5, color="0.6", linewidth=0.8, linestyle="--")


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """A figure to draw on, saved when done."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(path, dpi=150)


def _shorten(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
