"""Draw the plots of `run.py`, in the report's style."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from game import averaged

from ssppo_jax.runs.report.plots import COLOURS, drawing

STYLE = {"text.parse_math": True, "svg.hashsalt": "ssppo_jax"}  # for the ticks of logarithmic axes
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])  # rock, paper, scissors


def _save(path: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> None:
    with drawing(size, **STYLE) as figure:
        draw(figure)
        figure.savefig(path, metadata={"Date": None})  # the same numbers, the same file


def cycle(path: Path, policies: np.ndarray) -> None:  # [T,3]
    """The orbit of self-play in the triangle of policies, and of its running average."""

    def draw(figure):
        ax = figure.subplots()
        ax.set_axis_off()
        ax.set_aspect("equal")
        ax.plot(*CORNERS[[0, 1, 2, 0]].T, color="black", linewidth=0.8)
        for corner, name in zip(CORNERS, ("rock", "paper", "scissors"), strict=True):
            above = corner[1] > 0
            ax.annotate(
                name, corner, (0, 5 if above else -13), textcoords="offset points", ha="center"
            )
        ax.plot(*(policies @ CORNERS).T, color=COLOURS[0], linewidth=0.5, alpha=0.6, label="policy")
        ax.plot(*(averaged(policies) @ CORNERS).T, color=COLOURS[1], label="running average")
        ax.plot(*CORNERS.mean(0), "k+", markersize=9, label="equilibrium", linestyle="none")
        figure.legend(loc="outside lower center", ncols=3)

    _save(path, (3.6, 3.5), draw)


def rates(
    path: Path, lengths: tuple[int, ...], gap: dict[str, np.ndarray], bound: np.ndarray
) -> None:
    """Gap of the averaged policy against T: each game thin, the geometric mean thick, and the
    bound."""

    def draw(figure):
        ax = figure.subplots()
        for colour, (title, values) in zip(COLOURS, gap.items(), strict=False):
            ax.plot(lengths, values[:, :, 0], color=colour, linewidth=0.4, alpha=0.5)
            ax.plot(
                lengths,
                np.exp(np.log(values[:, :, 0]).mean(1)),
                color=colour,
                marker="o",
                markersize=3,
                label=title,
            )
        ax.plot(
            lengths,
            bound,
            color="black",
            linestyle="--",
            linewidth=0.9,
            label="bound, sqrt(2 log A / T)",
        )
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="iterations T, step size sqrt(8 log A / T)",
            ylabel="duality gap",
        )
        ax.set_title("averaged policy, 8 random games of 10 actions")
        figure.legend(loc="outside lower center", ncols=2)

    _save(path, (6.4, 4.4), draw)


def calibration(
    path: Path, weights: tuple[float, ...], eps: np.ndarray, wordings: dict[str, np.ndarray]
) -> None:
    """Left: eps of the repelled equilibrium under its bound. Right: wordings alive over
    self-play."""

    def draw(figure):
        left, right = figure.subplots(1, 2)
        left.plot(weights, eps, color=COLOURS[0], linewidth=0.7)
        left.plot(
            weights,
            2 * np.array(weights),
            color="black",
            linestyle="--",
            linewidth=0.9,
            label="2 lambda M",
        )
        left.set(xscale="log", yscale="log", xlabel="lambda", ylabel="eps in the calibrated game")
        left.set_title("repelled equilibrium, 8 games")
        left.legend()
        for title, values in wordings.items():
            right.plot(np.arange(0, len(values), 20), values[::20], label=title)
        right.set(xlabel="iteration", ylabel="effective wordings of a meaning", ylim=(0.9, 3.1))
        right.set_title("near-duplicates")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)

    _save(path, (8.4, 3.4), draw)
