"""What the report shows of texts: the pairs, groups or opponents trained on, and held-out samples
before and after."""

from __future__ import annotations

import collections
import itertools
import math
import re

import numpy as np

from ssppo_jax.report import page
from ssppo_jax.report.plots import plot_group_rewards, plot_margins
from ssppo_jax.report.record import Run, finite, number

SAMPLES_OPEN, SAMPLES_MOST = 8, 200  # prompts shown at once, and shown at all
EXAMPLES = 3  # groups, and opponents, shown of the first and of the last iteration
ENDS = 2  # of a group, its best and its worst responses, shown at once


def trained_on_sections(run: Run) -> str:
    """What the run trained on; a run without any record is told of its pairs."""
    parts = [_groups_section(run)] if run.groups else []
    parts += [_opponents_section(run)] if run.opponents else []
    return "".join(parts if parts and not run.pairs else [_pairs_section(run), *parts])


# ---- pairs ---------------------------------------------------------------------------------------


def _pairs_section(run: Run) -> str:
    title = "Gated and raw margins against similarity"
    rows = []
    for pair in run.pairs:
        ends = [pair.get("win_rate"), pair.get("target")]
        if all(isinstance(end, list) and len(end) == 2 for end in ends):
            rows.append([number(v) for v in (pair.get("similarity"), *ends[0], *ends[1])])
    good = np.array([row for row in rows if None not in row and np.isfinite(row).all()])
    skipped = len(run.pairs) - len(good)
    if skipped:
        run.notes.append(
            f"pairs.jsonl: {skipped} pairs lack a finite similarity, win_rate or target; not drawn."
        )
    if not len(good):
        return page.section(title, page.missing("No pairs were recorded."))
    similarity, raw, gated = good[:, 0], good[:, 1] - good[:, 2], good[:, 3] - good[:, 4]
    alike = similarity > 0.9
    caption = (
        f"{len(good)} selected pairs; the line is the mean of ten equal slices of similarity. "
    )
    if alike.any():
        caption += (
            f"Above 0.9 similarity ({alike.sum()} pairs) the mean margin is {raw[alike].mean():.3f}"
            f" raw and {gated[alike].mean():.3f} gated."
        )
    return page.section(
        title, page.figure(plot_margins(similarity, raw, gated), caption) + _pair_table(run.pairs)
    )


def _pair_table(pairs: list[dict]) -> str:
    rows = []
    for iteration, group in _by_iteration(pairs).items():
        means = [
            _mean([number(pair.get(key)) for pair in group]) for key in ("similarity", "p_win")
        ]
        ties = sum(pair.get("tied") is True for pair in group)
        rows.append([iteration, str(len(group)), str(ties), *means])
    return page.table(
        ["iteration", "pairs", "tied", "mean similarity", "mean P(winner > loser)"], rows
    )


def _by_iteration(records: list[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = collections.defaultdict(list)
    for record in records:
        found[str(record.get("iteration", "?"))].append(record)
    return found


def _mean(values: list[float | None]) -> str:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return f"{sum(known) / len(known):.3f}" if known else "-"


# ---- groups --------------------------------------------------------------------------------------


def _groups_section(run: Run) -> str:
    """Rewards of the groups over iterations, and some of the first and of the last iteration in
    full."""
    good = [group for group in run.groups if _is_whole(group)]
    if len(good) < len(run.groups):
        run.notes.append(
            f"groups.jsonl: {len(run.groups) - len(good)} groups lack an iteration or a finite"
            " reward for every response; left out."
        )
    if not good:
        return page.section("Groups trained on", page.missing("No groups were recorded."))
    rewards: dict[float, list[np.ndarray]] = collections.defaultdict(list)
    for group in good:
        rewards[group["iteration"]].append(np.array(group["reward"], float))
    flat = sum(np.ptp(reward) == 0 for groups in rewards.values() for reward in groups)
    caption = (
        f"{len(good)} groups, {flat} of them with equal rewards, which teach nothing. Length"
        " penalties are included."
    )
    body = page.figure(plot_group_rewards(rewards), caption)
    for iteration in dict.fromkeys((min(rewards), max(rewards))):
        mine = [group for group in good if group["iteration"] == iteration]
        mine.sort(
            key=lambda group: np.ptp(group["reward"]) == 0
        )  # those that teach first, else in the file's order
        body += f"<h3>Iteration {iteration:g}</h3>" + "".join(map(_group_card, mine[:EXAMPLES]))
    return page.section("Groups trained on", body)


def _is_whole(group: dict) -> bool:
    responses, reward = group.get("responses"), group.get("reward")
    lists = (
        isinstance(responses, list)
        and isinstance(reward, list)
        and len(responses) == len(reward) > 0
    )
    return lists and finite(group.get("iteration")) is not None and None not in map(finite, reward)


def _group_card(group: dict) -> str:
    """A prompt, the answer wanted, and its responses from the best to the worst."""
    columns = [_column(group, key) for key in ("advantage", "length")]
    order = sorted(range(len(group["reward"])), key=lambda i: -group["reward"][i])
    shown = []
    for i in order:
        advantage, length = (column[i] for column in columns)
        reward = f"reward {finite(group['reward'][i]):.3f}"
        badge = f"advantage {advantage:+.3f}" if advantage is not None else ""
        badge += f", {length:g} tokens" if length is not None else ""
        shown.append(page.response(reward, group["responses"][i], badge.strip(", ")))
    answer = group.get("answer")
    wanted = "" if answer is None else f'<p class="answer">answer: {page.text(answer)}</p>'
    best, between, worst = shown[:ENDS], shown[ENDS:-ENDS], shown[ENDS:][-ENDS:]
    middle = page.folded(f"{len(between)} responses between", _two_abreast(between))
    return page.card(
        group.get("prompt"), wanted + _two_abreast(best) + middle + _two_abreast(worst)
    )


def _two_abreast(responses: list[str]) -> str:
    pairs = itertools.zip_longest(responses[::2], responses[1::2], fillvalue="")
    return "".join(page.sides(left, right) for left, right in pairs)


def _column(group: dict, key: str) -> list[float | None]:
    """Finite numbers for each response, as far as they are there."""
    values = group.get(key)
    values = values if isinstance(values, list) else []
    return [
        finite(v) for v, _ in itertools.zip_longest(values[: len(group["reward"])], group["reward"])
    ]


# ---- opponents -----------------------------------------------------------------------------------


def _opponents_section(run: Run) -> str:
    """How often the policy's response beat its opponent's, and some of the first and of the last
    iteration."""
    found = _by_iteration(run.opponents)
    rows = [
        [i, str(len(mine)), _mean([number(r.get("p_win")) for r in mine])]
        for i, mine in found.items()
    ]
    body = page.table(["iteration", "prompts", "mean P(policy > opponent)"], rows)
    for iteration in dict.fromkeys((next(iter(found)), next(reversed(found)))):
        body += f"<h3>Iteration {page.text(iteration)}</h3>"
        body += "".join(map(_opponent_card, found[iteration][:EXAMPLES]))
    return page.section("Responses and their opponents", body)


def _opponent_card(record: dict) -> str:
    p = finite(record.get("p_win"))
    own = page.response("policy", record.get("policy"), "" if p is None else f"wins with {p:.3f}")
    return page.card(
        record.get("prompt"), page.sides(own, page.response("opponent", record.get("opponent")))
    )


# ---- held-out samples ----------------------------------------------------------------------------


def samples_section(run: Run) -> str:
    title = "Held-out samples, before and after"
    stages = {str(sample.get("stage")) for sample in run.samples}
    last = max(stages - {"start"}, key=stage_order, default=None)
    texts: dict[tuple[str, str], list[dict]] = collections.defaultdict(list)
    for sample in run.samples:
        texts[str(sample.get("prompt_id")), str(sample.get("stage"))].append(sample)
    ids = list(dict.fromkeys(prompt_id for prompt_id, _ in texts))
    if not ids:
        return page.section(title, page.missing("No samples were recorded."))
    cards = [
        _sample_card(texts[i, "start"], texts[i, last] if last else [], last or "after")
        for i in ids
    ]
    shown = cards[SAMPLES_OPEN:SAMPLES_MOST]
    body = "".join(cards[:SAMPLES_OPEN]) + page.folded(f"{len(shown)} more prompts", "".join(shown))
    if len(cards) > SAMPLES_MOST:
        body += page.missing(f"{len(cards) - SAMPLES_MOST} more prompts are in samples.jsonl.")
    return page.section(title, body)


def stage_order(stage: str) -> tuple[int, int]:
    found = re.fullmatch(r"iter_(\d+)", stage, re.ASCII)
    return (2, 0) if stage == "final" else (1, int(found[1])) if found else (0, 0)


def _sample_card(before: list[dict], after: list[dict], after_name: str) -> str:
    rows = [
        page.sides(_sample_text("start", old), _sample_text(after_name, new))
        for old, new in itertools.zip_longest(before, after)
    ]
    more = page.folded(f"{len(rows) - 1} more samples", "".join(rows[1:]))
    return page.card((before + after or [{}])[0].get("prompt"), (rows[0] if rows else "") + more)


def _sample_text(stage: str, sample: dict | None) -> str:
    if sample is None:
        return f"<div><b>{page.text(stage)}</b>{page.missing('not recorded')}</div>"
    score = number(sample.get("score"))
    return page.response(
        stage, sample.get("response"), "" if score is None else f"score {score:.3f}"
    )
