"""The report's plots over a run: held-out results with their intervals, and every logged number by
topic."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable
from typing import NamedTuple

from ssppo_jax.report import page
from ssppo_jax.report.plots import Line, plot_interval, plot_lines, plot_phase_times
from ssppo_jax.report.record import Run, held_out, metric_lines, phase_seconds


class Topic(NamedTuple):
    """A section of plots: the metrics it claims, by phase and key, and whether they share one plot
    or get one each."""

    title: str
    claims: Callable[[str, str], bool]
    overlay: bool


def _starts(*starts: str, phases: tuple[str, ...] = ()) -> Callable[[str, str], bool]:
    return lambda phase, key: key.startswith(starts) and (not phases or phase in phases)


def _holds(pattern: str) -> Callable[[str, str], bool]:
    return lambda phase, key: re.search(pattern, key) is not None


WEIGHTS = ("effective_update_ratio", "clip", "sequence_ratio", "sequence_weight", "ratio")
REWARDS = ("reward", "advantage", "accuracy", "format", "group/")
TOPICS = (  # the first topic that claims a metric gets it
    Topic("Loss and its terms", _starts("loss", "term/"), overlay=False),
    Topic("Rewards and advantages", _starts(*REWARDS, phases=("judge", "train")), overlay=False),
    Topic("Gradient norms", _starts("grad_norm"), overlay=False),
    Topic(
        "Gates, clips and importance weights", _starts(*WEIGHTS, phases=("train",)), overlay=False
    ),
    Topic("KL divergence", _holds(r"(?i)(^|[^a-z])kl"), overlay=True),
    Topic("Completion length", _starts("length"), overlay=True),
    Topic("Entropy, EOS rate, repetition", _holds("entropy|eos|repet|distinct"), overlay=False),
    Topic("Throughput", _holds("throughput|_per_s(econd)?$|/s$"), overlay=False),
)


def held_out_section(run: Run) -> str:
    """Every held-out quantity that has an interval, over iterations."""
    found = held_out(run.metrics)
    if not found:
        return page.section("Held-out results", page.missing("No evaluation was recorded."))
    rate = (
        "Win rate: trained against starting policy, by the configured oracle. "
        if "win_rate" in found
        else ""
    )
    rest = (
        "Rewards: mean of the trained policy; dashed: of the starting one. "
        if set(found) - {"win_rate"}
        else ""
    )
    caption = f"Held-out prompts. {rate}{rest}Band: 95% interval over prompts."
    plots = [plot_interval(name, rows, wide=len(found) == 1) for name, rows in found.items()]
    body = (
        page.figure(plots[0], caption)
        if len(plots) == 1
        else page.grid(plots) + page.missing(caption)
    )
    return page.section("Held-out results", body)


def metric_sections(run: Run) -> str:
    drawn = {f"{name}{end}" for name in held_out(run.metrics) for end in ("", "_low", "_high")}
    lines = [
        line
        for line in metric_lines(run.metrics)
        if line.key != "seconds" and not (line.phase == "evaluate" and line.key in drawn)
    ]
    out = []
    for topic in TOPICS:
        mine = [line for line in lines if topic.claims(line.phase, line.key)]
        lines = [line for line in lines if not topic.claims(line.phase, line.key)]
        plots = _topic_plots(topic, mine)
        if topic.title == "Throughput" and (seconds := phase_seconds(run.metrics)):
            plots.insert(0, plot_phase_times(seconds))
        if plots:
            name = "Time and throughput" if topic.title == "Throughput" else topic.title
            out.append(page.section(name, page.grid(plots)))
    if lines:
        rest = page.grid([plot_lines(_label(line), [line]) for line in lines])
        out.append(page.section("All other metrics", page.folded(f"{len(lines)} plots", rest)))
    return "".join(out)


def _topic_plots(topic: Topic, lines: list[Line]) -> list[str]:
    if not topic.overlay:
        return [plot_lines(_label(line), [line]) for line in lines]
    by_phase: dict[str, list[Line]] = collections.defaultdict(list)
    for line in lines:
        by_phase[line.phase].append(line)
    return [
        plot_lines(f"{topic.title}, {phase}" if len(group) > 1 else _label(group[0]), group)
        for phase, group in by_phase.items()
    ]


def _label(line: Line) -> str:
    return line.key if line.phase == "train" else f"{line.phase}: {line.key}"
