"""Draw the figures of reports and sweeps with matplotlib, as inline SVG or to a file."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from ssppo_jax.runs.report.record import LARGEST

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RASTER_FROM = 1500  # points from which a scatter is a bitmap instead of one shape a point
SMALL, WIDE = (4.2, 2.5), (8.4, 3.3)  # inches
COLOURS = ("#4c86e8", "#e8833a", "#35a06a", "#a667d8", "#d9534f", "#8a8f98", "#c2a30f", "#20a5b5")
STYLE: dict[str, Any] = {
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "black",
    "grid.alpha": 0.15,
    "font.size": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a metric may be called $x
}


class Plot(NamedTuple):
    """A figure for the page."""

    label: str  # for readers who cannot see it
    svg: Markup  # with black ink on no ground; the page inverts it in dark mode


@contextmanager
def drawing(size: tuple[float, float], **style: Any) -> Iterator[Figure]:
    """Give a new figure of `size` inches, in the style of the reports and `style`."""
    # Its first import on a machine tells of the font cache that it builds.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: Any = STYLE | style
    with rc_context(settings):
        yield Figure(figsize=size, layout="constrained")


def _plot(figure: Figure, label: str) -> Plot:
    """Return the figure as SVG that is the same for the same run. Call it inside `drawing`."""
    from matplotlib import rc_context

    out = io.StringIO()
    undated = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": label}):  # ids must differ between the figures of a page
        figure.savefig(out, format="svg", transparent=True, dpi=150, metadata=undated)
    svg = out.getvalue()
    return Plot(label, Markup(svg[svg.index("<svg") :]))  # without the declaration of XML


def whole_numbers(ax: Axes, label: str) -> None:
    """Label the x axis, with ticks at whole numbers only."""
    ax.set_xlabel(label)
    ax.locator_params(axis="x", nbins="auto", integer=True)


def shorten(text: str, most: int = 48) -> str:
    """Return at most `most` characters of a text, all printable."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def plot_series(title: str, rows: pd.DataFrame) -> Plot:
    """Draw metrics of one phase: rows of a `metric_frame`.

    The title counts the values that were not finite.
    """
    over = "step" if rows.phase.iloc[0] == "train" else "iteration"
    good = rows.value.abs() < LARGEST  # not NaN either
    with drawing(SMALL) as figure:
        ax = figure.subplots()
        whole_numbers(ax, over)
        for key, line in rows[good].groupby("key", sort=False):
            marker = "o" if len(line) <= 40 else ""
            label = shorten(str(key), 24)
            ax.plot(line[over], line.value, label=label, marker=marker, markersize=2.5)
        lost = len(rows) - good.sum()
        ax.set_title(shorten(title) + (f"  ({lost} non-finite)" if lost else ""))
        if len(ax.lines) > 1:
            figure.legend(loc="outside lower center", ncols=3)
        return _plot(figure, title)


def plot_interval(name: str, rows: pd.DataFrame, *, wide: bool) -> Plot:
    """Draw a value over iterations with the band from `low` to `high`; NaN leaves a gap.

    A dashed line tells where nothing has changed. That is 0.5 for a win rate, and the value at
    iteration 0 for everything else.
    """
    is_rate = name.endswith("win_rate")
    words = shorten(name.replace("_", " "))
    with drawing(WIDE if wide else (4.2, 2.9)) as figure:
        ax = figure.subplots()
        whole_numbers(ax, "iteration")
        x, value, low, high = (rows[column] for column in ("iteration", "value", "low", "high"))
        ax.fill_between(x, low, high, alpha=0.22, linewidth=0)
        # The band alone would not show a single evaluation.
        ax.vlines(x, low, high, color=COLOURS[0], linewidth=1.2)
        ax.plot(x, value, marker="o", markersize=4)
        if is_rate or x.iloc[0] == 0:
            unchanged = 0.5 if is_rate else value.iloc[0]
            ax.axhline(unchanged, color="black", linestyle="--", linewidth=0.8, alpha=0.6)
        if is_rate:
            bottom, top = np.nanmin([low, value]), np.nanmax([high, value])
            ax.set_ylim(min(0.35, bottom - 0.03), max(0.75, top + 0.03))
        ax.set_ylabel("win rate over the starting policy" if is_rate and wide else words)
        return _plot(figure, f"{words} over iterations with its 95% interval")


def plot_rates(title: str, lines: dict[str, pd.DataFrame]) -> Plot:
    """Draw the win rates of several oracles together, each with its interval."""
    with drawing((4.2, 2.9)) as figure:
        ax = figure.subplots()
        whole_numbers(ax, "iteration")
        for place, (name, rows) in enumerate(lines.items()):
            x, value, low, high = (rows[key] for key in ("iteration", "value", "low", "high"))
            colour = COLOURS[place % len(COLOURS)]
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            ax.vlines(x, low, high, color=colour, linewidth=1)
            ax.plot(x, value, "o-", color=colour, markersize=4, label=shorten(name, 24))
        ax.axhline(0.5, color="black", linestyle="--", linewidth=0.8, alpha=0.6)
        ax.set_title(title)
        figure.legend(loc="outside lower center", ncols=3)
        return _plot(figure, f"{title} over iterations, by {', '.join(lines)}")


def plot_group_rewards(groups: pd.DataFrame) -> Plot:
    """Draw the rewards of groups: one row each, with `iteration` and mean, best, worst of K."""
    with drawing(WIDE) as figure:
        over, spread = figure.subplots(1, 2)
        by_iteration = groups.groupby("iteration")[["mean", "best", "worst"]].mean()
        names = {"mean": "mean", "best": "best of K", "worst": "worst of K"}
        for column, name in names.items():
            style = "-" if column == "mean" else ":"
            y = by_iteration[column]
            over.plot(y.index, y, style, label=name, marker="o", markersize=2.5)
        over.set(ylabel="reward", title="reward, mean over groups")
        whole_numbers(over, "iteration")
        over.legend()
        ends = dict.fromkeys((groups.iteration.min(), groups.iteration.max()))
        means = {i: groups["mean"][groups.iteration == i] for i in ends}
        edges = np.histogram_bin_edges(np.concatenate(list(means.values())), bins=12)
        for (i, mean), style in zip(means.items(), ("--", "-"), strict=False):
            share = np.full(len(mean), 1 / len(mean))
            look = {"histtype": "step", "linestyle": style, "linewidth": 1.4}
            spread.hist(mean, edges, weights=share, label=f"iteration {i:g}", **look)
        spread.set(xlabel="mean reward of a group", ylabel="share of groups")
        spread.set_title("groups, first and last")
        spread.legend()
        return _plot(figure, "group rewards over iterations and their spread")


def plot_margins(pairs: pd.DataFrame) -> Plot:
    """Draw the `raw` and the `gated` margin of pairs over their `similarity`.

    The line is the mean of each of ten slices (after Figure 2 of the S-SPPO paper).
    """
    with drawing(WIDE) as figure:
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        slices = pairs.groupby(pd.cut(pairs.similarity, 10), observed=True)
        means = slices[["similarity", "raw", "gated"]].mean()
        look = {"s": 9, "alpha": 0.35, "linewidths": 0, "rasterized": len(pairs) >= RASTER_FROM}
        for ax, name, colour in zip(axes, ("raw", "gated"), COLOURS, strict=False):
            ax.scatter(pairs.similarity, pairs[name], color=colour, **look)
            ax.plot(means.similarity, means[name], "o-k", linewidth=1.6, markersize=3)
            ax.set(title=name, xlabel="similarity of winner and loser")
        axes[0].set_ylabel("win-rate margin, winner - loser")
        return _plot(figure, "win-rate margin against similarity, raw and gated")


def plot_phase_times(seconds: pd.DataFrame) -> Plot:
    """Draw stacked bars of seconds by iteration (rows) and phase (columns)."""
    with drawing(SMALL) as figure:
        ax = figure.subplots()
        whole_numbers(ax, "iteration")
        floors = seconds.cumsum(axis=1) - seconds
        for phase in seconds:
            label = shorten(str(phase), 20)
            ax.bar(seconds.index, seconds[phase], bottom=floors[phase], width=0.8, label=label)
        ax.set(ylabel="seconds", title="time by phase")
        figure.legend(loc="outside lower center", ncols=4)
        return _plot(figure, "seconds by phase and iteration")
