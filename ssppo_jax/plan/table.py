"""Format a plan as text for people and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ssppo_jax.plan.compile import GIB, Plan
from ssppo_jax.runs.throughput import Chip


def describe(plan: Plan, chip: Chip) -> str:
    """Describe one phase in a few lines."""
    held = ", ".join(f"{name} {_gib(size)}" for name, size in plan.memory.items())
    if plan.peak is None:
        return (
            f"{plan.phase}: does NOT fit {_gib(chip.memory)} a chip\n  counted: {held}\n "
            f" {plan.refusal}"
        )
    fits = "fits" if plan.fits else "does NOT fit"
    sent = "not known: the compiler could not write its program down"
    if plan.collectives is not None:
        sent = (
            ", ".join(f"{kind} {_gib(size)}" for kind, size in plan.collectives.items())
            or "nothing"
        )
    times = ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in plan.seconds.items())
    return (
        f"{plan.phase}: {_gib(plan.peak)} of {_gib(chip.memory)} at the peak, {fits}\n  counted:"
        f" {held}\n  received: {sent}\n  at the roofline: {times}; {plan.binds} binds:"
        f" {plan.tokens_per_second:,.0f} completion tokens/s in all, utilisation at most"
        f" {100 * plan.utilisation:.0f}%\n  {plan.flops / 1e12:.2f} TFLOP a chip; compiled in"
        f" {plan.compile_seconds:.0f} s"
    )


def ranking(tried: Sequence[tuple[dict[str, object], Plan]]) -> str:
    """Format the settings of a sweep, best first, as a Markdown table."""
    lines = [
        "| "
        + " | ".join((*tried[0][0], "peak GiB", "fits", "binds", "tokens/s at the roofline"))
        + " |"
    ]
    lines.append("|" + "---|" * (len(tried[0][0]) + 4))
    for overrides, plan in tried:
        peak = "?" if plan.peak is None else f"{plan.peak / GIB:.2f}"
        rate = f"{plan.tokens_per_second:,.0f}" if plan.peak is not None else "?"
        cells = (
            *map(str, overrides.values()),
            peak,
            "yes" if plan.fits else "no",
            plan.binds,
            rate,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def record(plan: Plan, overrides: dict[str, object] | None = None) -> dict:
    """Return what goes into plan.json."""
    return (
        dataclasses.asdict(plan)
        | {"binds": plan.binds}
        | ({"overrides": overrides} if overrides else {})
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
