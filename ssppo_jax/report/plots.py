"""The report's plots, as inline SVG that takes its text colour from the page."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ssppo_jax.errors import UserError

RASTER_FROM = (
    1500  # scatter points beyond which a plot embeds a bitmap instead of one shape a point
)


class Line(NamedTuple):
    """One metric of one phase over its run."""

    phase: str
    key: str
    x: np.ndarray  # steps while training, iterations in other phases
    y: np.ndarray  # finite values only
    lost: int  # non-finite values, which are not drawn


# stands for the page's text colour: replaced by currentColor, so plots follow light and dark
INK = "#010203"
COLOURS = ("#4c86e8", "#e8833a", "#35a06a", "#a667d8", "#d9534f", "#8a8f98", "#c2a30f", "#20a5b5")
STYLE = {
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "font.size": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "ssppo_jax",
    "text.parse_math": False,  # a metric may be called $x
} | dict.fromkeys(
    (
        "text.color",
        "axes.edgecolor",
        "axes.labelcolor",
        "axes.titlecolor",
        "xtick.color",
        "ytick.color",
        "grid.color",
    ),
    INK,
)


def _svg(draw: Callable[[Any], None], size: tuple[float, float], label: str) -> str:
    """The inline SVG of what `draw(figure)` drew."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("the report draws with matplotlib: pip install matplotlib") from error
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, dpi=150)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<metadata>.*?</metadata>", "", svg, flags=re.S
    )  # it holds the date: the same run, the same page
    svg = re.sub(
        r'<g id="[^"]*"', "<g", svg
    )  # group ids repeat from plot to plot; nothing refers to them
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


def plot_lines(title: str, lines: list[Line]) -> str:
    """One plot of metrics of one phase; what was NaN or infinite is counted in the title."""

    def draw(figure):
        ax = _axes_over("step" if lines[0].phase == "train" else "iteration", figure)
        for line in lines:
            ax.plot(
                line.x,
                line.y,
                label=_shorten(line.key, 24),
                marker="o" if line.x.size <= 40 else "",
                markersize=2.5,
            )
        lost = sum(line.lost for line in lines)
        ax.set_title(_shorten(title) + (f"  ({lost} non-finite)" if lost else ""))
        if len(lines) > 1:
            figure.legend(loc="outside lower center", ncols=3)

    return _svg(draw, (4.2, 2.5), title)


def _axes_over(what: str, figure: Any) -> Any:
    from matplotlib.ticker import MaxNLocator

    ax = figure.subplots()
    ax.set_xlabel(what)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return ax


def _shorten(text: str, most: int = 48) -> str:
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def plot_interval(name: str, rows: list[tuple[float, float, float, float]], *, wide: bool) -> str:
    """Rows of iteration, value, low, high; a NaN bound leaves a gap in the band. Dashed: where
    nothing has changed, which is 0.5 for a win rate and the value at iteration 0, when there is
    one, for what else is measured."""
    is_rate = name == "win_rate"
    words = _shorten(name.replace("_", " "))

    def draw(figure):
        ax = _axes_over("iteration", figure)
        x, mean, low, high = np.array(rows).T
        ax.fill_between(x, low, high, alpha=0.22, linewidth=0)
        ax.vlines(
            x, low, high, color=COLOURS[0], linewidth=1.2
        )  # the band alone would not show a single evaluation
        ax.plot(x, mean, marker="o", markersize=4)
        if is_rate or x[0] == 0:
            ax.axhline(
                0.5 if is_rate else mean[0], color=INK, linestyle="--", linewidth=0.8, alpha=0.6
            )
        if is_rate:
            ax.set_ylim(
                min(0.35, np.nanmin([low, mean]) - 0.03), max(0.75, np.nanmax([high, mean]) + 0.03)
            )
        ax.set_ylabel("win rate over the starting policy" if is_rate and wide else words)

    return _svg(
        draw, (8.4, 3.3) if wide else (4.2, 2.9), f"{words} over iterations with its 95% interval"
    )


def plot_group_rewards(rewards: dict[float, list[np.ndarray]]) -> str:
    """{iteration: rewards [K] of each group}: mean, best and worst of K; the groups' means, first
    and last."""

    def draw(figure):
        from matplotlib.ticker import MaxNLocator

        over, spread = figure.subplots(1, 2)
        x = sorted(rewards)
        for name, of, style in (
            ("mean", np.mean, "-"),
            ("best of K", np.max, ":"),
            ("worst of K", np.min, ":"),
        ):
            y = [np.mean([of(group) for group in rewards[i]]) for i in x]
            over.plot(x, y, style, label=name, marker="o", markersize=2.5)
        over.set(xlabel="iteration", ylabel="reward", title="reward, mean over groups")
        over.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        over.legend()
        ends = dict.fromkeys((x[0], x[-1]))
        means = {i: np.array([group.mean() for group in rewards[i]]) for i in ends}
        edges = np.histogram_bin_edges(np.concatenate(list(means.values())), bins=12)
        for i, style in zip(ends, ("--", "-"), strict=False):
            how = {
                "histtype": "step",
                "linestyle": style,
                "linewidth": 1.4,
                "label": f"iteration {i:g}",
            }
            spread.hist(means[i], edges, weights=np.ones(len(means[i])) / len(means[i]), **how)
        spread.set(
            xlabel="mean reward of a group",
            ylabel="share of groups",
            title="groups, first and last",
        )
        spread.legend()

    return _svg(draw, (8.4, 3.3), "group rewards over iterations and their spread")


def plot_margins(similarity: np.ndarray, raw: np.ndarray, gated: np.ndarray) -> str:
    """Two scatters over similarity, each with its mean by slice (after the S-SPPO paper's Figure
    2)."""

    def draw(figure):
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        for ax, margin, title, colour in zip(
            axes, (raw, gated), ("raw", "gated"), COLOURS, strict=False
        ):
            many = similarity.size >= RASTER_FROM
            ax.scatter(
                similarity, margin, s=9, alpha=0.35, linewidths=0, color=colour, rasterized=many
            )
            ax.plot(
                *_binned_mean(similarity, margin),
                color=INK,
                linewidth=1.6,
                marker="o",
                markersize=3,
            )
            ax.set_title(title)
            ax.set_xlabel("similarity of winner and loser")
        axes[0].set_ylabel("win-rate margin, winner - loser")

    return _svg(draw, (8.4, 3.3), "win-rate margin against similarity, raw and gated")


def _binned_mean(x: np.ndarray, y: np.ndarray, bins: int = 10) -> tuple[np.ndarray, np.ndarray]:
    edges = np.linspace(x.min(), x.max(), bins + 1)
    bin_of = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, bins - 1)
    full = [b for b in range(bins) if (bin_of == b).any()]
    return np.array([x[bin_of == b].mean() for b in full]), np.array(
        [y[bin_of == b].mean() for b in full]
    )


def plot_phase_times(seconds: dict[str, dict[float, float]]) -> str:
    """Stacked bars of {phase: {iteration: seconds}}."""

    def draw(figure):
        ax = _axes_over("iteration", figure)
        x = sorted(set().union(*seconds.values()))
        floor = np.zeros(len(x))
        for phase, by_iteration in seconds.items():
            height = np.array([by_iteration.get(i, 0.0) for i in x])
            ax.bar(x, height, bottom=floor, width=0.8, label=_shorten(phase, 20))
            floor += height
        ax.set_ylabel("seconds")
        ax.set_title("time by phase")
        figure.legend(loc="outside lower center", ncols=4)

    return _svg(draw, (4.2, 2.5), "seconds by phase and iteration")
