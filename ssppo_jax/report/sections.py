"""Choose what the report shows of a run, as plots, tables and texts for `page.html.j2`."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ssppo_jax.report import plots
from ssppo_jax.report.plots import Plot
from ssppo_jax.report.record import Run, Series, finite, held_out, metric_series, number
from ssppo_jax.report.record import phase_seconds as seconds_of

SAMPLES_OPEN, SAMPLES_MOST = 8, 200  # prompts shown at once, and shown at all
EXAMPLES = 3  # groups, and opponents, shown of the first and of the last iteration
ENDS = 2  # of a group, its best and its worst responses, shown at once


class Topic(NamedTuple):
    """A section of plots, and the metrics it claims."""

    title: str
    pattern: str  # of the start of "phase/key"
    overlay: bool = False  # one plot for each phase instead of one for each metric


TIME = "Time and throughput"
TOPICS = (  # the first topic that claims a metric gets it
    Topic("Loss and its terms", "[^/]*/(loss|term/)"),
    Topic(
        "Rewards and advantages",
        "(judge|train)/(reward|advantage|accuracy|format|group/|frac_reward)",
    ),
    Topic("Gradient norms", "[^/]*/grad_norm"),
    Topic(
        "Gates, clips and importance weights",
        "train/(effective_update_ratio|clip|sequence_ratio|sequence_weight|ratio)",
    ),
    Topic("KL divergence", "(?i)[^/]*/(.*[^a-z])?kl", overlay=True),
    Topic("Completion length", "[^/]*/length", overlay=True),
    Topic("Entropy, EOS rate, repetition", "[^/]*/.*(entropy|eos|repet|distinct)"),
    Topic(TIME, "[^/]*/.*(throughput|_per_s(econd)?$|/s$)"),
)


class Text(NamedTuple):
    """A text of a model, and what was measured of it."""

    name: str
    text: Any  # None: not recorded
    score: str = ""


class Card(NamedTuple):
    """A prompt with texts of models, two abreast."""

    prompt: Any
    top: Sequence[tuple[Text | None, ...]]
    fold: str = ""  # tells what is folded
    folded: Sequence[tuple[Text | None, ...]] = ()
    bottom: Sequence[tuple[Text | None, ...]] = ()
    answer: Any = None


# ---- metrics -------------------------------------------------------------------------------------


def held_out_results(run: Run) -> tuple[list[Plot], str]:
    """Return a plot of every held-out quantity that has an interval, and a caption."""
    found = held_out(run.metrics)
    caption = "Held-out prompts. "
    if "win_rate" in found:
        caption += "Win rate: trained against starting policy, by the configured oracle. "
    if set(found) - {"win_rate"}:
        caption += "Rewards: mean of the trained policy; dashed: of the starting one. "
    caption += "Band: 95% interval over prompts."
    wide = len(found) == 1
    return [plots.plot_interval(name, rows, wide=wide) for name, rows in found.items()], caption


def metric_topics(run: Run) -> tuple[list[tuple[str, list[Plot]]], list[Plot]]:
    """Return the plots of every topic, and those of the metrics that no topic claims."""
    shown = {f"{name}{end}" for name in held_out(run.metrics) for end in ("", "_low", "_high")}
    mine: dict[str, list[Series]] = defaultdict(list)
    for line in metric_series(run.metrics):
        if line.phase != "evaluate" or line.key not in shown:
            mine[topic_of(line.phase, line.key)].append(line)
    topics = [(topic.title, _topic_plots(topic, mine[topic.title])) for topic in TOPICS]
    seconds = seconds_of(run.metrics)
    if len(seconds.columns):
        dict(topics)[TIME].insert(0, plots.plot_phase_times(seconds))
    rest = [plots.plot_series(_label(line), [line]) for line in mine[""]]
    return [(title, drawn) for title, drawn in topics if drawn], rest


def topic_of(phase: str, key: str) -> str:
    """Return the title of the topic that claims a metric, or ""."""
    claims = (topic.title for topic in TOPICS if re.match(topic.pattern, f"{phase}/{key}"))
    return next(claims, "")


def _topic_plots(topic: Topic, lines: list[Series]) -> list[Plot]:
    if not topic.overlay:
        return [plots.plot_series(_label(line), [line]) for line in lines]
    by_phase: dict[str, list[Series]] = defaultdict(list)
    for line in lines:
        by_phase[line.phase].append(line)
    return [
        plots.plot_series(f"{topic.title}, {phase}" if len(mine) > 1 else _label(mine[0]), mine)
        for phase, mine in by_phase.items()
    ]


def _label(line: Series) -> str:
    return line.key if line.phase == "train" else f"{line.phase}: {line.key}"


# ---- pairs ---------------------------------------------------------------------------------------


def pair_margins(run: Run) -> dict[str, Any] | None:
    """Return the plot of margins, its caption and the table of pairs; None without any pair."""
    good = _pair_frame(run.pairs).dropna(subset=["similarity", "raw", "gated"])
    skipped = len(run.pairs) - len(good)
    if skipped:
        run.notes.append(
            f"pairs.jsonl: {skipped} pairs lack a finite similarity, win_rate or target; not drawn."
        )
    if not len(good):
        return None
    caption = (
        f"{len(good)} selected pairs; the line is the mean of ten equal slices of similarity. "
    )
    alike = good[good.similarity > 0.9]
    if len(alike):
        caption += (
            f"Above 0.9 similarity ({len(alike)} pairs) the mean margin is {alike.raw.mean():.3f}"
            f" raw and {alike.gated.mean():.3f} gated."
        )
    return {"plot": plots.plot_margins(good), "caption": caption, "rows": _pair_rows(run.pairs)}


def _pair_frame(pairs: list[dict]) -> pd.DataFrame:
    """Return one row for each pair; NaN for what is not a finite number."""
    rows = []
    for pair in pairs:
        one: dict[str, Any] = {"iteration": str(pair.get("iteration", "?"))}
        one["tied"] = pair.get("tied") is True
        for name in ("similarity", "p_win"):
            one[name] = finite(pair.get(name))
        for name, ends in (("raw", pair.get("win_rate")), ("gated", pair.get("target"))):
            known = [finite(end) for end in ends] if isinstance(ends, list) else []
            first, second = known if len(known) == 2 else (None, None)
            one[name] = None if first is None or second is None else first - second
        rows.append(one)
    columns = ["similarity", "p_win", "raw", "gated"]
    frame = pd.DataFrame(rows, columns=["iteration", "tied", *columns])
    return frame.astype(dict.fromkeys(columns, float))


def _pair_rows(pairs: list[dict]) -> list[list[str]]:
    """Return iteration, pairs, ties, mean similarity and mean P(winner > loser)."""
    rows = []
    for iteration, mine in _pair_frame(pairs).groupby("iteration", sort=False):
        counts = [str(len(mine)), str(mine.tied.sum())]
        rows.append([str(iteration), *counts, _mean(mine.similarity), _mean(mine.p_win)])
    return rows


def _mean(values: pd.Series) -> str:
    mean = values.mean()
    return "-" if math.isnan(mean) else f"{mean:.3f}"


# ---- groups --------------------------------------------------------------------------------------


def group_examples(run: Run) -> dict[str, Any] | None:
    """Return the plot of rewards, its caption and some groups of the first and last iteration.

    None without any group.
    """
    good = [group for group in run.groups if _is_whole(group)]
    if len(good) < len(run.groups):
        run.notes.append(
            f"groups.jsonl: {len(run.groups) - len(good)} groups lack an iteration or a finite"
            " reward for every response; left out."
        )
    if not good:
        return None
    rewards = [np.array(group["reward"], float) for group in good]
    rows = [(reward.mean(), reward.max(), reward.min()) for reward in rewards]
    frame = pd.DataFrame(rows, columns=["mean", "best", "worst"])
    frame["iteration"] = [float(group["iteration"]) for group in good]
    flat = frame.best == frame.worst
    caption = (
        f"{len(good)} groups, {flat.sum()} of them with equal rewards, which teach nothing. Length"
        " penalties are included."
    )
    examples = []
    for iteration in dict.fromkeys((frame.iteration.min(), frame.iteration.max())):
        mine = frame.index[frame.iteration == iteration]
        shown = sorted(mine, key=lambda i: flat[i])[:EXAMPLES]  # those that teach come first
        examples.append((f"{iteration:g}", [_group_card(good[i]) for i in shown]))
    return {"plot": plots.plot_group_rewards(frame), "caption": caption, "examples": examples}


def _is_whole(group: dict) -> bool:
    responses, reward = group.get("responses"), group.get("reward")
    if not isinstance(responses, list) or not isinstance(reward, list):
        return False
    if not len(responses) == len(reward) > 0:
        return False
    return finite(group.get("iteration")) is not None and None not in map(finite, reward)


def _group_card(group: dict) -> Card:
    """Return a prompt, the answer wanted, and its responses from the best to the worst."""
    advantages, lengths = (_column(group, key) for key in ("advantage", "length"))
    texts = []
    for i in sorted(range(len(group["reward"])), key=lambda i: -group["reward"][i]):
        measured = []
        if advantages[i] is not None:
            measured.append(f"advantage {advantages[i]:+.3f}")
        if lengths[i] is not None:
            measured.append(f"{lengths[i]:g} tokens")
        name = f"reward {group['reward'][i]:.3f}"
        texts.append(Text(name, group["responses"][i] or "", ", ".join(measured)))
    best, between, worst = texts[:ENDS], texts[ENDS:-ENDS], texts[ENDS:][-ENDS:]
    fold = f"{len(between)} responses between"
    sides = (_two_abreast(part) for part in (best, between, worst))
    top, folded, bottom = sides
    return Card(group.get("prompt"), top, fold, folded, bottom, group.get("answer"))


def _two_abreast(texts: list[Text]) -> list[tuple[Text | None, ...]]:
    return list(itertools.zip_longest(texts[::2], texts[1::2]))


def _column(group: dict, key: str) -> list[float | None]:
    """Return a finite number for each response, or None."""
    values = group.get(key)
    known = [finite(value) for value in values] if isinstance(values, list) else []
    return [*known, *[None] * len(group["reward"])]


# ---- opponents -----------------------------------------------------------------------------------


def opponent_examples(run: Run) -> dict[str, Any]:
    """Return how often the policy's response beat its opponent's, and some of both."""
    found: dict[str, list[dict]] = defaultdict(list)
    for record in run.opponents:
        found[str(record.get("iteration", "?"))].append(record)
    rows = []
    for iteration, mine in found.items():
        p = pd.Series([finite(record.get("p_win")) for record in mine], dtype=float)
        rows.append([iteration, str(len(mine)), _mean(p)])
    ends = dict.fromkeys((next(iter(found)), next(reversed(found))))
    examples = [(i, [_opponent_card(record) for record in found[i][:EXAMPLES]]) for i in ends]
    return {"rows": rows, "examples": examples}


def _opponent_card(record: dict) -> Card:
    p = finite(record.get("p_win"))
    own = Text("policy", record.get("policy") or "", "" if p is None else f"wins with {p:.3f}")
    opponent = Text("opponent", record.get("opponent") or "")
    return Card(record.get("prompt"), [(own, opponent)])


# ---- held-out samples ----------------------------------------------------------------------------


def sample_cards(run: Run) -> tuple[list[Card], list[Card], int]:
    """Return held-out samples before and after: cards shown, cards folded, and how many are not."""
    last = max((str(sample.get("stage")) for sample in run.samples), key=stage_order, default="")
    after = last if last != "start" else "after"
    texts: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for sample in run.samples:
        texts[str(sample.get("prompt_id"))][str(sample.get("stage"))].append(sample)
    cards = [_sample_card(mine["start"], mine[after], after) for mine in texts.values()]
    shown, folded = cards[:SAMPLES_OPEN], cards[SAMPLES_OPEN:SAMPLES_MOST]
    return shown, folded, max(len(cards) - SAMPLES_MOST, 0)


def stage_order(stage: str) -> tuple[int, int]:
    """Return what sorts the stages of a run: start, others, iter_k by k, final."""
    if stage == "start":
        return -1, 0
    found = re.fullmatch(r"iter_(\d+)", stage, re.ASCII)
    return (2, 0) if stage == "final" else (1, int(found[1])) if found else (0, 0)


def _sample_card(before: list[dict], after: list[dict], name: str) -> Card:
    sides = [
        (_sample_text("start", old), _sample_text(name, new))
        for old, new in itertools.zip_longest(before, after)
    ]
    prompt = (before + after or [{}])[0].get("prompt")
    return Card(prompt, sides[:1], f"{len(sides) - 1} more samples", sides[1:])


def _sample_text(stage: str, sample: dict | None) -> Text:
    if sample is None:
        return Text(stage, None)
    score = number(sample.get("score"))
    return Text(stage, sample.get("response") or "", "" if score is None else f"score {score:.3f}")
