"""Format a plan as text for people and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ssppo_jax.plan.compile import GIB, Plan
from ssppo_jax.plan.iteration import Iteration
from ssppo_jax.plan.search import Tried
from ssppo_jax.runs.throughput import Chip


def describe(plan: Plan, chip: Chip) -> str:
    """Describe one phase in a few lines."""
    held = ", ".join(f"{name} {_gib(size)}" for name, size in plan.memory.items())
    if plan.peak is None:
        return (
            f"{plan.phase}: does NOT fit {_gib(chip.memory)} a chip\n  counted: {held}"
            f"\n  {plan.refusal}"
        )
    fits = "fits" if plan.fits else "does NOT fit"
    sent = "not known: the compiler could not write its program down"
    if plan.collectives is not None:
        parts = (f"{kind} {_gib(size)}" for kind, size in plan.collectives.items())
        sent = ", ".join(parts) or "nothing"
    times = ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in plan.seconds.items())
    return (
        f"{plan.phase}: {_gib(plan.peak)} of {_gib(chip.memory)} at the peak, {fits}\n  counted:"
        f" {held}\n  received: {sent}\n  at the roofline: {times}; {plan.binds} binds:"
        f" {plan.tokens_per_second:,.0f} completion tokens/s in all, utilisation at most"
        f" {100 * plan.utilisation:.0f}%\n  {plan.flops / 1e12:.2f} TFLOP a chip; compiled in"
        f" {plan.compile_seconds:.0f} s"
    )


def describe_iteration(found: Iteration, price: float) -> str:
    """Describe an iteration and the run in one line, and in a second one what is assumed."""
    parts = " + ".join(
        f"{phase} {_minutes(seconds)}" for phase, seconds in found.seconds.items() if seconds
    )
    cost = f", {price * found.chip_hours:,.2f} at {price:g} a chip-hour" if price else ""
    return (
        f"an iteration of {found.prompts:,} prompts: at least {_minutes(found.total)} min ="
        f" {parts}; the run of {found.iterations} with its evaluations: {found.hours:.2f} h,"
        f" {found.chip_hours:,.1f} chip-hours{cost}\n"
        "  relay, generate, score and train are at the roofline; assumed: " + "; ".join(found.notes)
    )


def ranking(tried: Sequence[Tried], configured: Iteration | None) -> str:
    """Format the layouts that were compiled, the fastest first, beside the config's own and the
    paper's measured iteration, in minutes.
    """
    keys = [*tried[0].training, *tried[0].sampling]
    heads = (*keys, "train GiB", "generate GiB", *COLUMNS, "iteration")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for one in tried:
        peaks = {plan.phase: _peak(plan) for plan in one.plans}
        cells = [*map(str, one.training.values()), *map(str, one.sampling.values())]
        cells += [peaks.get("train", ""), peaks.get("generate", "")]
        lines.append("| " + " | ".join(cells + _columns(one.iteration)) + " |")
    blank = [""] * (len(keys) + 1)
    if configured is not None:
        lines.append("| " + " | ".join(["as configured", *blank, *_columns(configured)]) + " |")
    lines.append("| " + " | ".join([PAPER, *blank, *PAPER_MINUTES]) + " |")
    return "\n".join(lines)


# S-SPPO (arXiv 2606.01561): minutes of an iteration, sampling together with judging
PAPER = "the paper, 8 x H100, measured"
PAPER_MINUTES = ("49 with judging", "", "1.5", "16", "", "66")
COLUMNS = {
    "generate": ("relay", "generate"),
    "judge": ("judge",),
    "embed": ("embed",),
    "score and train": ("score", "train"),
    "disk": ("checkpoint", "initial policy"),
}


def _columns(found: Iteration | None) -> list[str]:
    """Return an iteration's minutes by the columns of the ranking."""
    if found is None:
        return [""] * len(COLUMNS) + ["does not fit"]
    sums = (sum(found.seconds.get(name, 0.0) for name in names) for names in COLUMNS.values())
    return [*map(_minutes, sums), _minutes(found.total)]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.2f}"


def _peak(plan: Plan) -> str:
    size = "refused" if plan.peak is None else f"{plan.peak / GIB:.2f}"
    return size if plan.fits or plan.peak is None else f"{size}, does not fit"


def record(plan: Plan, overrides: dict[str, object] | None = None) -> dict:
    """Return what goes into plan.json."""
    changed = {"overrides": overrides} if overrides else {}
    return dataclasses.asdict(plan) | {"binds": plan.binds} | changed


def record_iteration(found: Iteration, price: float) -> dict:
    """Return what goes into iteration.json: seconds, hours, and what the chips cost."""
    sums = {"total": found.total, "hours": found.hours, "chip_hours": found.chip_hours}
    cost = {"cost": price * found.chip_hours} if price else {}
    return dataclasses.asdict(found) | sums | cost


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
