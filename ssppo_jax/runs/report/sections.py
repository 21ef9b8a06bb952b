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

from ssppo_jax.runs.report import plots
from ssppo_jax.runs.report.plots import Plot
from ssppo_jax.runs.report.record import Run, finite, finite_list, held_out, phase_seconds
from ssppo_jax.runs.report.story import OPPONENTS

FIRST = 3  # prompts on the first screen
SAMPLES_OPEN, SAMPLES_MOST = 5, 200  # prompts shown at once further down, and shown at all
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
    """A prompt with texts of models, which stand two abreast."""

    prompt: Any
    top: list[Text]
    fold: str = ""  # tells what is folded
    folded: Sequence[Text] = ()
    bottom: Sequence[Text] = ()
    answer: Any = None


# ---- metrics -------------------------------------------------------------------------------------


def held_out_results(run: Run) -> tuple[list[Plot], str]:
    """Return a plot of every held-out quantity that has an interval, and a caption."""
    found = held_out(run.metrics)
    rates = [name for name in found if name.endswith("win_rate")]
    caption = "Held-out prompts. "
    if rates:
        caption += "Win rate: trained against starting policy, by the configured oracle"
        caption += " and by others. " if len(rates) > 1 else ". "
    if set(found) - set(rates):
        caption += "Rewards: mean of the trained policy; dashed: of the starting one. "
    caption += "Band: 95% interval over prompts."
    own = str(run.config.get("oracle.name", "")) if isinstance(run.config, dict) else ""
    wide = len(found) == 1
    drawn = [
        plots.plot_interval(name, found[name], wide=wide) for name in found if name not in rates
    ]
    # The training oracle first, and raw rates before those at equal length.
    rates.sort(key=lambda name: (name.count("/"), "length" in name))
    for title, names in _rate_groups(rates).items():
        if len(names) == 1:
            drawn.append(plots.plot_interval(names[0], found[names[0]], wide=wide))
        else:
            lines = {_judge_of(name) or own or "trained on": found[name] for name in names}
            drawn.append(plots.plot_rates(title, lines))
    return drawn, caption


def _rate_groups(names: list[str]) -> dict[str, list[str]]:
    """Return the win rates that are drawn together, by a title."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        *labels, kind = name.split("/")
        opponent = labels[-1] if labels and labels[-1] in OPPONENTS else "start"
        words = "win rate at equal length" if kind.startswith("length") else "win rate"
        groups[f"{words} over the {opponent}"].append(name)
    return groups


def _judge_of(name: str) -> str:
    """Return the oracle that a logged win rate names; the training oracle has no name there."""
    return "/".join(label for label in name.split("/")[:-1] if label not in OPPONENTS)


def metric_topics(run: Run) -> tuple[dict[str, list[Plot]], list[Plot]]:
    """Return the plots of every topic, and those of the metrics that no topic claims."""
    shown = [f"{name}{end}" for name in held_out(run.metrics) for end in ("", "_low", "_high")]
    rows = run.metrics[~run.metrics.key.isin(["time", "seconds"])]
    rows = rows[(rows.phase != "evaluate") | ~rows.key.isin(shown)]
    mine: dict[str, list[pd.DataFrame]] = defaultdict(list)
    for (phase, key), metric in rows.groupby(["phase", "key"], sort=False):
        mine[topic_of(str(phase), str(key))].append(metric)
    topics = {topic.title: _topic_plots(topic, mine[topic.title]) for topic in TOPICS}
    seconds = phase_seconds(run.metrics)
    if len(seconds.columns):
        topics[TIME].insert(0, plots.plot_phase_times(seconds))
    rest = [plots.plot_series(_title(metric), metric) for metric in mine[""]]
    return {title: drawn for title, drawn in topics.items() if drawn}, rest


def topic_of(phase: str, key: str) -> str:
    """Return the title of the topic that claims a metric, or ""."""
    claims = (topic.title for topic in TOPICS if re.match(topic.pattern, f"{phase}/{key}"))
    return next(claims, "")


def _topic_plots(topic: Topic, metrics: list[pd.DataFrame]) -> list[Plot]:
    if topic.overlay and metrics:
        metrics = [rows for _, rows in pd.concat(metrics).groupby("phase", sort=False)]
    return [plots.plot_series(_title(rows, topic.title), rows) for rows in metrics]


def _title(rows: pd.DataFrame, together: str = "") -> str:
    """Return the name of a metric, or of several together, with its phase."""
    phase, key = rows.phase.iloc[0], rows.key.iloc[0]
    if rows.key.nunique() > 1:
        return f"{together}, {phase}"
    return key if phase == "train" else f"{phase}: {key}"


# ---- pairs ---------------------------------------------------------------------------------------


def pair_margins(run: Run) -> dict[str, Any] | None:
    """Return the plot of margins, its caption and the table of pairs; None without any pair."""
    pairs = _pair_frame(run.pairs)
    good = pairs.dropna(subset=["similarity", "raw", "gated"])
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
    return {"plot": plots.plot_margins(good), "caption": caption, "rows": _pair_rows(pairs)}


def _pair_frame(pairs: list[dict]) -> pd.DataFrame:
    """Return one row for each pair; NaN for what is not a finite number."""
    rows = []
    for pair in pairs:
        iteration, tied = str(pair.get("iteration", "?")), pair.get("tied") is True
        measured = finite_list([pair.get("similarity"), pair.get("p_win")])
        margins = [_margin(pair.get(name)) for name in ("win_rate", "target")]
        rows.append((iteration, tied, *measured, *margins))
    columns = ["similarity", "p_win", "raw", "gated"]
    frame = pd.DataFrame(rows, columns=["iteration", "tied", *columns])
    return frame.astype(dict.fromkeys(columns, float))


def _margin(ends: Any) -> float | None:
    match finite_list(ends):
        case [float(first), float(second)]:
            return first - second
    return None


def _pair_rows(pairs: pd.DataFrame) -> list[list[str]]:
    """Return iteration, pairs, ties, mean similarity and mean P(winner > loser)."""
    rows = []
    for iteration, mine in pairs.groupby("iteration", sort=False):
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
    """Return whether a group has an iteration and a finite reward for every response."""
    responses, rewards = group.get("responses"), finite_list(group.get("reward"))
    if not isinstance(responses, list) or not len(responses) == len(rewards) > 0:
        return False
    return None not in rewards and finite(group.get("iteration")) is not None


def _group_card(group: dict) -> Card:
    """Return a prompt, the answer wanted, and its responses from the best to the worst."""
    rewards = group["reward"]
    none: list[float | None] = [None] * len(rewards)
    advantages, lengths = (finite_list(group.get(key)) + none for key in ("advantage", "length"))
    texts = []
    for i in sorted(range(len(rewards)), key=lambda i: -rewards[i]):
        measured = []
        if advantages[i] is not None:
            measured.append(f"advantage {advantages[i]:+.3f}")
        if lengths[i] is not None:
            measured.append(f"{lengths[i]:g} tokens")
        name = f"reward {rewards[i]:.3f}"
        texts.append(Text(name, group["responses"][i] or "", ", ".join(measured)))
    best, between, worst = texts[:ENDS], texts[ENDS:-ENDS], texts[ENDS:][-ENDS:]
    fold = f"{len(between)} responses between"
    return Card(group.get("prompt"), best, fold, between, worst, group.get("answer"))


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
    return Card(record.get("prompt"), [own, opponent])


# ---- held-out samples ----------------------------------------------------------------------------


def first_cards(run: Run) -> list[Card]:
    """Return the first prompts that have texts, with one response before and one after."""
    return [card._replace(fold="", folded=()) for card in _cards(run)[:FIRST]]


def sample_cards(run: Run) -> tuple[list[Card], list[Card], int]:
    """Return held-out samples before and after: cards shown, cards folded, and how many are not."""
    cards = _cards(run)
    shown, folded = cards[:SAMPLES_OPEN], cards[SAMPLES_OPEN:SAMPLES_MOST]
    return shown, folded, max(len(cards) - SAMPLES_MOST, 0)


def _cards(run: Run) -> list[Card]:
    last = max((str(sample.get("stage")) for sample in run.samples), key=stage_order, default="")
    after = last if last != "start" else "after"
    texts: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for sample in run.samples:
        texts[str(sample.get("prompt_id"))][str(sample.get("stage"))].append(sample)
    return [_sample_card(mine["start"], mine[after], after) for mine in texts.values()]


def stage_order(stage: str) -> tuple[int, int]:
    """Return what sorts the stages of a run: start, others, iter_k by k, final."""
    if stage == "start":
        return -1, 0
    found = re.fullmatch(r"iter_(\d+)", stage, re.ASCII)
    return (2, 0) if stage == "final" else (1, int(found[1])) if found else (0, 0)


def _sample_card(before: list[dict], after: list[dict], name: str) -> Card:
    texts = []
    for old, new in itertools.zip_longest(before, after):
        texts += [_sample_text("start", old), _sample_text(name, new)]
    prompt = (before + after or [{}])[0].get("prompt")
    return Card(prompt, texts[:2], f"{len(texts) // 2 - 1} more samples", texts[2:])


def _sample_text(stage: str, sample: dict | None) -> Text:
    if sample is None:
        return Text(stage, None)
    score = finite(sample.get("score"))
    return Text(stage, sample.get("response") or "", "" if score is None else f"score {score:.3f}")
