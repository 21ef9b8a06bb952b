"""Draw the pictures of the pages on the two ideas, from the package's own functions.

python docs/figures.py [FOLDER]     # docs/img without one
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssppo_jax.losses import GATES, RATIO_GATES
from ssppo_jax.losses.core import cosine
from ssppo_jax.losses.gates import calibrate

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "font.size": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "ssppo_jax",  # the same figure has the same bytes
}


def semantic_gate(figure: Figure) -> None:
    """Draw what three gates make of a verdict as the two responses become alike."""
    similarity = np.linspace(0, 1, 201)
    left, right = figure.subplots(1, 2, sharex=True)
    for name, gate in GATES.items():
        left.plot(similarity, gate(similarity), label=name)
    _label(left, "similarity S of the two responses", "factor on P − 1/2", "The gate")
    for win_rate in (0.95, 0.8, 0.65, 0.35, 0.2, 0.05):
        target = calibrate(np.full_like(similarity, win_rate), GATES["linear"](similarity))
        right.plot(similarity, target, color="C0" if win_rate > 0.5 else "C3")
    right.axhline(0.5, color="grey", linestyle=":")
    right.set_ylim(0, 1)
    _label(right, "similarity S", "calibrated target", "linear gate, six win rates")
    left.legend()


def repulsion(figure: Figure) -> None:
    """Draw the repulsion of two hidden states, and the way each is pushed."""
    left, right = figure.subplots(1, 2)
    angle = np.linspace(0.0, np.pi, 181)
    fixed = jnp.array([1.0, 0.0])
    others = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    slope = jax.vmap(jax.grad(lambda h: cosine(fixed, h)))(others)
    both = jnp.broadcast_to(fixed, others.shape)
    left.plot(np.degrees(angle), cosine(both, others), label="the term: cos")
    left.plot(np.degrees(angle), jnp.linalg.norm(slope, axis=-1), label="its gradient's length")
    _label(left, "angle between the hidden states, degrees", "", "The term of one pair")
    left.legend()
    for degrees in (10, 30, 60, 90, 130):
        h = jnp.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
        push = -0.5 * jax.grad(lambda x: cosine(fixed, x))(h)
        right.plot([0, h[0]], [0, h[1]], color="C0", linewidth=1)
        _arrow(right, h, push)
    right.plot([0, 1], [0, 0], color="C3", linewidth=2)
    right.set_aspect("equal")
    _label(right, "", "", "The push on h_l (blue), h_w fixed (red)")


def soft_gates(figure: Figure) -> None:
    """Draw soft gates on a token's ratio and how much of its gradient each lets through."""
    ratio = np.geomspace(0.25, 4.0, 401)
    u = jnp.log(jnp.asarray(ratio, jnp.float32))
    left, right = figure.subplots(1, 2, sharex=True)
    for name in ("identity", "log_clip", "arctan_log", "sigmoid_norm", "softsign"):
        gated = RATIO_GATES[name](u, jnp.full_like(u, 3.0))
        style = {"linestyle": "--"} if name in ("identity", "log_clip") else {}
        left.plot(ratio, jnp.exp(gated.log_f), label=name, **style)
        right.plot(ratio, gated.slope, label=name, **style)
    left.set_ylim(0, 2.5)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.axvline(1.0, color="grey", linestyle=":")
    _label(left, "ratio r of a token", "f(r)", "The gate, temperature 3")
    _label(right, "ratio r of a token", "", "Its slope: what is left of the gradient")
    left.legend()


def _label(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontsize=10)


def _arrow(axes: Axes, start, step) -> None:
    style = {"arrowstyle": "->", "color": "C1"}
    axes.annotate("", xy=tuple(start + step), xytext=tuple(start), arrowprops=style)
    axes.plot(*(start + step), alpha=0)  # the limits of the axes include the arrow's head


FIGURES = {
    "semantic_gate": semantic_gate,
    "repulsion": repulsion,
    "soft_gates": soft_gates,
}


def draw(folder: Path) -> list[Path]:
    """Write every figure into a folder as SVG; return the files."""
    files = []
    for name, fill in FIGURES.items():
        with rc_context(STYLE):
            figure = Figure(figsize=(8.0, 3.2), layout="constrained", facecolor="white")
            fill(figure)
            files.append(folder / f"{name}.svg")
            figure.savefig(files[-1], metadata={"Date": None})
    return files


if __name__ == "__main__":
    where = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "img"
    for file in draw(where):
        print(file)
