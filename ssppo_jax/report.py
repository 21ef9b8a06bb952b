"""One self-contained HTML page from a run folder: plots, samples before and after, the exact config.

The folder's contract. Every file may be missing or end in a torn line; the page says so and shows the rest.

    config.json    {"config": the exact configuration, "command", and versions and devices by name}
    metrics.jsonl  {"phase", "step", "iteration", "values": numbers by name, "wall": {"time", "seconds", ...},
                   "nonfinite": [names]} a record; numbers may also stand beside "phase"
    pairs.jsonl    {"iteration", "prompt_id", "prompt", "winner", "loser", "win_rate" [2], "target" [2], "similarity",
                   "p_win", "tied"} a selected pair
    samples.jsonl  {"stage": "start" | "iter_k" | "final", "prompt_id", "prompt", "response", and "score" if known}
                   a held-out text, any number for one prompt
    result.json    {"win_rate", "low", "high", "prompts"}: the final win rate over the starting policy

Texts come from models and from strangers' prompt files: everything is escaped and the page runs no script.
"""

from __future__ import annotations

import collections
import html
import itertools
import json
import math
import os
import platform
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssppo_jax.errors import UserError
from ssppo_jax.plots import Line, plot_lines, plot_margins, plot_phase_times, plot_win_rate

CONTEXT_KEYS = ("phase", "step", "iteration", "time")
SAMPLES_OPEN, SAMPLES_MOST = 8, 200  # prompts shown at once, and shown at all
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers", "matplotlib")


def build_report(workdir: str | os.PathLike) -> Path:
    """Writes `report.html` into the run folder and returns its path.

    Raises:
        UserError: the folder does not exist, or matplotlib is not installed.
    """
    folder = Path(workdir)
    if not folder.is_dir():
        raise UserError(f"no run folder at {folder}: give the workdir of a run, the folder that holds metrics.jsonl")
    run = read_run(folder)
    page = _page(folder.resolve().name, run)
    target, partial = folder / "report.html", folder / "report.html.tmp"
    partial.write_text(page, encoding="utf-8", errors="replace")  # lone surrogates are legal in JSON, not in UTF-8
    os.replace(partial, target)
    return target


# ---------------------------------------------------------------------------------------------- reading


class Run(NamedTuple):
    """A run folder as found."""

    config: Any
    start: dict  # what config.json says beside the configuration: command, versions, devices
    metrics: list[dict]  # flat
    pairs: list[dict]
    samples: list[dict]
    result: dict
    notes: list[str]  # what is missing or damaged


def read_run(folder: Path) -> Run:
    """Reads what is there; what is missing, torn or malformed goes to `notes`."""
    notes: list[str] = []
    config, result = (_read_json(folder / f"{name}.json", notes) for name in ("config", "result"))
    start: dict = {}
    if isinstance(config, dict) and "config" in config:
        start = {key: value for key, value in config.items() if key != "config"}
        config = config["config"]
    lines = {name: _read_lines(folder / f"{name}.jsonl", notes) for name in ("metrics", "pairs", "samples")}
    metrics = [_flat(record) for record in lines["metrics"]]
    return Run(config, start, metrics, lines["pairs"], lines["samples"], _as_dict(result), notes)


def _read_json(path: Path, notes: list[str]) -> Any:
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        notes.append(f"{path.name} is not valid JSON ({error}); left out.")
        return None


def _read_lines(path: Path, notes: list[str]) -> list[dict]:
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    rows, bad = [], []
    lines = text.split("\n")  # not splitlines: U+2028 may stand unescaped inside a JSON string
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number == len(lines):
            notes.append(f"{path.name}: the last line is torn (the run stopped while writing it); left out.")
        else:
            bad.append(number)
    if bad:
        listed = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        notes.append(f"{path.name}: {len(bad)} lines are not JSON objects and are left out (line {listed}).")
    if not rows:
        notes.append(f"{path.name} holds no records.")
    return rows


def _as_dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    """A JSON number as a float (NaN and infinities included); None for anything else, booleans too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _flat(record: dict) -> dict:
    """A metrics record with its `values` and `wall` beside its phase, and NaN for the names in `nonfinite`."""
    context = {key: value for key, value in record.items() if key not in ("values", "wall", "nonfinite")}
    names = record.get("nonfinite")
    lost = {name: math.nan for name in names if isinstance(name, str)} if isinstance(names, list) else {}
    return _as_dict(record.get("values")) | lost | _as_dict(record.get("wall")) | context


def _numbers(record: dict) -> dict[str, float]:
    numbers = {key: _number(value) for key, value in record.items() if key not in CONTEXT_KEYS}
    return {key: number for key, number in numbers.items() if number is not None}


def metric_lines(metrics: list[dict]) -> list[Line]:
    """Every number of flat metrics records as a series, in order of first appearance."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = collections.defaultdict(list)
    seen: collections.Counter[str] = collections.Counter()
    for record in metrics:
        phase = str(record.get("phase", "?"))
        x = _number(record.get("step" if phase == "train" else "iteration"))
        x = float(seen[phase]) if x is None else x
        seen[phase] += 1
        for key, value in _numbers(record).items():
            points[phase, key].append((x, value))
    lines = []
    for (phase, key), values in points.items():
        x, y = np.array(values).T
        ok = np.isfinite(x) & (np.abs(y) < 1e100)  # NaN fails too; beyond it axis limits overflow
        lines.append(Line(phase, key, x[ok], y[ok], int((~ok).sum())))
    return lines


# ---------------------------------------------------------------------------------------------- sections


class Topic(NamedTuple):
    """A section of plots: the metrics it claims, and whether they share one plot or get one each."""

    title: str
    claims: Callable[[str], bool]
    overlay: bool


TOPICS = (  # the first topic that claims a metric gets it
    Topic("Loss and its terms", lambda key: key.startswith(("loss", "term/")), overlay=False),
    Topic("Gradient norms", lambda key: key.startswith("grad_norm"), overlay=False),
    Topic("Probability ratios", lambda key: key.startswith("ratio"), overlay=False),
    Topic("KL divergence", lambda key: bool(re.search(r"(^|[^a-z])kl", key.lower())), overlay=True),
    Topic("Completion length", lambda key: key.startswith("length"), overlay=True),
    Topic(
        "Entropy, EOS rate, repetition",
        lambda key: re.search("entropy|eos|repet|distinct", key) is not None,
        overlay=False,
    ),
    Topic("Throughput", lambda key: bool(re.search("throughput|_per_s(econd)?$|/s$", key)), overlay=False),
)


def _win_rate_section(run: Run) -> str:
    rows = []
    for record in run.metrics:
        values = [_number(record.get(key)) for key in ("iteration", "win_rate", "win_rate_low", "win_rate_high")]
        if record.get("phase") == "evaluate" and all(v is not None and math.isfinite(v) for v in values[:2]):
            rows.append([math.nan if v is None else v for v in values])
    if not rows:
        return _section("Win rate", _missing("No evaluation was recorded."))
    caption = "Held-out prompts, trained against starting policy, by the configured oracle. Band: 95% interval."
    return _section("Win rate", _figure(plot_win_rate(rows), caption))


def _pairs_section(run: Run) -> str:
    title = "Gated and raw margins against similarity"
    rows = []
    for pair in run.pairs:
        ends = [pair.get("win_rate"), pair.get("target")]
        if all(isinstance(end, list) and len(end) == 2 for end in ends):
            rows.append([_number(v) for v in (pair.get("similarity"), *ends[0], *ends[1])])
    good = np.array([row for row in rows if None not in row and np.isfinite(row).all()])
    skipped = len(run.pairs) - len(good)
    if skipped:
        run.notes.append(f"pairs.jsonl: {skipped} pairs lack a finite similarity, win_rate or target; not drawn.")
    if not len(good):
        return _section(title, _missing("No pairs were recorded."))
    similarity, raw, gated = good[:, 0], good[:, 1] - good[:, 2], good[:, 3] - good[:, 4]
    alike = similarity > 0.9
    caption = f"{len(good)} selected pairs; the line is the mean of ten equal slices of similarity. "
    if alike.any():
        caption += (
            f"Above 0.9 similarity ({alike.sum()} pairs) the mean margin is {raw[alike].mean():.3f} raw "
            f"and {gated[alike].mean():.3f} gated."
        )
    return _section(title, _figure(plot_margins(similarity, raw, gated), caption) + _pair_table(run.pairs))


def _pair_table(pairs: list[dict]) -> str:
    by_iteration: dict[str, list[dict]] = collections.defaultdict(list)
    for pair in pairs:
        by_iteration[str(pair.get("iteration", "?"))].append(pair)
    rows = []
    for iteration, group in by_iteration.items():
        means = [_mean([_number(pair.get(key)) for pair in group]) for key in ("similarity", "p_win")]
        ties = sum(pair.get("tied") is True for pair in group)
        rows.append([iteration, str(len(group)), str(ties), *means])
    return _table(["iteration", "pairs", "tied", "mean similarity", "mean P(winner > loser)"], rows)


def _mean(values: list[float | None]) -> str:
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return f"{sum(finite) / len(finite):.3f}" if finite else "-"


def _metric_sections(run: Run) -> str:
    lines = [line for line in metric_lines(run.metrics) if not _drawn_elsewhere(line)]
    out = []
    for topic in TOPICS:
        mine = [line for line in lines if topic.claims(line.key)]
        lines = [line for line in lines if not topic.claims(line.key)]
        plots = _topic_plots(topic, mine)
        if topic.title == "Throughput" and (seconds := phase_seconds(run.metrics)):
            plots.insert(0, plot_phase_times(seconds))
        if plots:
            name = "Time and throughput" if topic.title == "Throughput" else topic.title
            out.append(_section(name, _grid(plots)))
    if lines:
        rest = _grid([plot_lines(_label(line), [line]) for line in lines])
        out.append(_section("All other metrics", f"<details><summary>{len(lines)} plots</summary>{rest}</details>"))
    return "".join(out)


def _drawn_elsewhere(line: Line) -> bool:
    return line.key == "seconds" or (line.phase == "evaluate" and line.key.startswith("win_rate"))


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


def phase_seconds(metrics: list[dict]) -> dict[str, dict[float, float]]:
    """Seconds by phase and iteration: the records' own `seconds`, and where a phase has none, its share of `time`.

    That share is the time since the record before; the first record of the file and clock jumps backwards count 0.
    """
    own = {str(record.get("phase")) for record in metrics if _number(record.get("seconds")) is not None}
    total: dict[str, dict[float, float]] = collections.defaultdict(lambda: collections.defaultdict(float))
    before = None
    for record in metrics:
        phase, now = str(record.get("phase")), _number(record.get("time"))
        elapsed = now - before if now is not None and before is not None else 0.0
        before = before if now is None else now
        spent = _number(record.get("seconds")) if phase in own else elapsed
        iteration = _number(record.get("iteration"))
        if spent is not None and iteration is not None and math.isfinite(spent) and math.isfinite(iteration):
            total[phase][iteration] += max(spent, 0.0)
    return {phase: dict(spent) for phase, spent in total.items() if any(spent.values())}


def _samples_section(run: Run) -> str:
    title = "Held-out samples, before and after"
    stages = {str(sample.get("stage")) for sample in run.samples}
    last = max(stages - {"start"}, key=_stage_order, default=None)
    texts: dict[tuple[str, str], list[dict]] = collections.defaultdict(list)
    for sample in run.samples:
        texts[str(sample.get("prompt_id")), str(sample.get("stage"))].append(sample)
    ids = list(dict.fromkeys(prompt_id for prompt_id, _ in texts))
    if not ids:
        return _section(title, _missing("No samples were recorded."))
    cards = [_sample_card(texts[i, "start"], texts[i, last] if last else [], last or "after") for i in ids]
    body = "".join(cards[:SAMPLES_OPEN])
    if len(cards) > SAMPLES_OPEN:
        shown = cards[SAMPLES_OPEN:SAMPLES_MOST]
        body += f"<details><summary>{len(shown)} more prompts</summary>{''.join(shown)}</details>"
    if len(cards) > SAMPLES_MOST:
        body += _missing(f"{len(cards) - SAMPLES_MOST} more prompts are in samples.jsonl.")
    return _section(title, body)


def _stage_order(stage: str) -> tuple[int, int]:
    number = re.fullmatch(r"iter_(\d+)", stage, re.ASCII)
    return (2, 0) if stage == "final" else (1, int(number[1])) if number else (0, 0)


def _sample_card(before: list[dict], after: list[dict], after_name: str) -> str:
    prompt = _text((before + after or [{}])[0].get("prompt"))
    rows = [
        f'<div class="sides">{_sample_text("start", old)}{_sample_text(after_name, new)}</div>'
        for old, new in itertools.zip_longest(before, after)
    ]
    more = "".join(rows[1:])
    more = more and f"<details><summary>{len(rows) - 1} more samples</summary>{more}</details>"
    return f'<article><h3 class="prompt">{prompt}</h3>{rows[0] if rows else ""}{more}</article>'


def _sample_text(stage: str, sample: dict | None) -> str:
    if sample is None:
        return f"<div><b>{_text(stage)}</b>{_missing('not recorded')}</div>"
    score = _number(sample.get("score"))
    badge = "" if score is None else f'<span class="score">score {score:.3f}</span>'
    response = _text(sample.get("response")) or "<i>(empty)</i>"
    return f'<div><b>{_text(stage)}</b> {badge}<div class="text">{response}</div></div>'


def _setup_section(run: Run) -> str:
    command = run.start.get("command")
    command = " ".join(map(str, command)) if isinstance(command, list) else command
    shown = f"<pre>{_text(command)}</pre>" if command else _missing("Not recorded (config.json).")
    recorded = {key: value for key, value in run.start.items() if key != "command"}
    source = "Recorded by the run." if recorded else "Of the machine that wrote this report; the run recorded none."
    rows = [[key, v if isinstance(v, str) else json.dumps(v)] for key, v in (recorded or _versions_here()).items()]
    config = _missing("Not recorded (config.json).")
    if run.config is not None:
        config = f"<pre>{_text(json.dumps(run.config, indent=2, ensure_ascii=False))}</pre>"
    return (
        _section("Command", shown)
        + _section("Versions", f"<p>{source}</p>" + _table(["what", "value"], rows))
        + _section("Configuration", config)
    )


def _versions_here() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


# ---------------------------------------------------------------------------------------------- the page


def _text(value: Any) -> str:
    return "" if value is None else html.escape(str(value))


def _missing(message: str) -> str:
    return f'<p class="missing">{_text(message)}</p>'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"


def _grid(plots: list[str]) -> str:
    return f'<div class="grid">{"".join(f"<figure>{plot}</figure>" for plot in plots)}</div>'


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    return f'<div class="wide"><table><tr>{top}</tr>{"".join(f"<tr>{row}</tr>" for row in cells)}</table></div>'


def _tiles(run: Run) -> str:
    tiles = []
    values = {key: _number(run.result.get(key)) for key in ("win_rate", "low", "high", "prompts")}
    if values["win_rate"] is not None:
        tiles.append(("final win rate", f"{values['win_rate']:.3f}"))
        if values["low"] is not None and values["high"] is not None:
            tiles.append(("95% interval", f"{values['low']:.3f} to {values['high']:.3f}"))
        if values["prompts"] is not None:
            tiles.append(("held-out prompts", f"{values['prompts']:g}"))
    training = [record for record in run.metrics if record.get("phase") == "train"]
    steps = [x for x in (_number(r.get("step")) for r in training) if x is not None and math.isfinite(x)]
    iterations = {r.get("iteration") for r in training if _number(r.get("iteration")) is not None}
    tiles += [("optimizer steps", f"{max(steps):g}")] if steps else []
    tiles += [("iterations", str(len(iterations)))] if iterations else []
    tiles += [("selected pairs", str(len(run.pairs)))] if run.pairs else []
    inner = "".join(f"<div><span>{_text(name)}</span><b>{_text(value)}</b></div>" for name, value in tiles)
    return f'<div class="tiles">{inner}</div>'


def _page(name: str, run: Run) -> str:
    body = "".join(part(run) for part in (_win_rate_section, _pairs_section, _metric_sections, _samples_section))
    body += _setup_section(run)
    notes = "".join(f"<li>{_text(note)}</li>" for note in run.notes)  # after the sections, which add to them
    notes = f"<aside><b>Incomplete records</b><ul>{notes}</ul></aside>" if notes else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">'
        f"<title>{_text(name)}: training report</title><style>{CSS}</style></head><body><main>"
        f"<h1>{_text(name)}</h1>{_tiles(run)}{notes}{body}</main></body></html>\n"
    )


CSS = """
:root { --page: #fbfbfa; --card: #ffffff; --ink: #22262b; --soft: #687078; --rule: #e2e4e7; --warn: #fff4dc; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --card: #1d2126; --ink: #dfe3e8; --soft: #98a1ab; --rule: #323840; --warn: #3a3018; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 24px; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 10px; padding-bottom: 4px; border-bottom: 1px solid var(--rule); }
figure { margin: 0; padding: 10px; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
figcaption, .missing, .score, summary { color: var(--soft); font-size: 13px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 12px; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; }
.tiles div { padding: 8px 14px; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
.tiles span { display: block; color: var(--soft); font-size: 12px; }
.tiles b { font-size: 18px; font-variant-numeric: tabular-nums; }
aside { margin: 16px 0; padding: 10px 14px; background: var(--warn); border-radius: 8px; font-size: 14px; }
aside ul { margin: 4px 0 0; padding-left: 20px; }
article { margin: 0 0 12px; padding: 12px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
.prompt { margin: 0 0 8px; font-size: 14px; white-space: pre-wrap; overflow-wrap: anywhere; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; font-size: 14px; }
.sides > div { min-width: 0; }
.sides + details .sides { margin-top: 14px; padding-top: 10px; border-top: 1px solid var(--rule); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.score { margin-left: 6px; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin-top: 10px; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 3px 18px 3px 0; border-bottom: 1px solid var(--rule); }
details { margin-top: 10px; } summary { cursor: pointer; margin-bottom: 8px; }
pre { margin: 0; padding: 12px; overflow-x: auto; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; font-size: 12.5px; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 640px) { .sides { grid-template-columns: 1fr; } }
"""
