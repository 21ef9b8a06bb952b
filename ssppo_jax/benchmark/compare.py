"""Put runs and benchmark results side by side: tables, paired tests, agreement of judges, curves,
and the answers that changed most. `leaderboard.md` is the table of a folder of results."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ssppo_jax.benchmark.paired import agreement, over_seeds, paired_test, values_of
from ssppo_jax.benchmark.result import RESULT, Result, different, read_result
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.evaluate import Estimate
from ssppo_jax.files import read_json, read_records, write_atomically
from ssppo_jax.rollout.similarity import token_jaccard
from ssppo_jax.runs.report.plots import COLOURS, drawing, whole_numbers

SHOWN = 5  # answers that changed most
CUT = 300  # characters shown of an answer
Item = TypeVar("Item")
RUN_PROTOCOL = ("oracle.", "eval.", "data.", "model.source")  # keys that a run's win rate is of


class Run(NamedTuple):
    """A training run, read."""

    folder: Path
    config: dict[str, Any]
    result: dict[str, Any]

    @property
    def protocol(self) -> dict[str, Any]:
        return {k: v for k, v in self.config.items() if k.startswith(RUN_PROTOCOL)}


def compare(folders: Sequence[Path], *, mixed: bool) -> tuple[str, list[Run]]:
    """Return the comparison as markdown, and the runs in it.

    Raises:
        ConfigError: results of one benchmark have different settings, which are listed, and
          `mixed` is false.
        DataError: a folder holds neither a run nor a result.
    """
    runs, results = _read(folders)
    parts = []
    for group in grouped(results, lambda one: one.protocol["benchmark"]):
        name = group[0].protocol["benchmark"]
        _check_comparable(group, mixed)
        parts += [f"## {name}", table(group), *_seeds(group), *_pairs(group), *_judges(group)]
    if runs:
        _check_comparable(runs, mixed)
        parts += ["## Runs", _run_table(runs), *_run_seeds(runs), *_changed_samples(runs)]
    return "# Comparison\n\n" + "\n\n".join(part for part in parts if part) + "\n", runs


def _read(folders: Sequence[Path]) -> tuple[list[Run], list[Result]]:
    """Read the folders themselves, or the runs and results directly inside of them."""
    found: list[Run | Result] = []
    for folder in folders:
        whole = _of(folder)
        inside = map(_of, sorted(folder.iterdir())) if whole is None else [whole]
        kept = [one for one in inside if one is not None]
        if not kept:
            raise DataError(
                f"{folder}: neither a run nor the result of a benchmark, and holds none; a result"
                f" has {RESULT}, a run config.json and metrics.jsonl"
            )
        found += kept
    runs = [one for one in found if isinstance(one, Run)]
    return runs, [one for one in found if isinstance(one, Result)]


def _of(folder: Path) -> Run | Result | None:
    """Read a folder; None where it is neither a run's nor a result's."""
    if is_run(folder):
        config, done = read_json(folder / "config.json")["config"], folder / RESULT
        return Run(folder, config, read_json(done) if done.is_file() else {})
    return read_result(folder) if is_result(folder) else None


def is_run(folder: Path) -> bool:
    """Say if a folder is that of a training run."""
    return (folder / "config.json").is_file() and (folder / "metrics.jsonl").is_file()


def is_result(folder: Path) -> bool:
    """Say if a folder holds the result of a benchmark."""
    path = folder / RESULT
    if is_run(folder) or not path.is_file():
        return False
    record = read_json(path)
    return isinstance(record, dict) and "protocol" in record


def grouped(items: Iterable[Item], kind: Callable[[Item], str]) -> list[list[Item]]:
    """Return the items of each kind together, in the order in which the kinds occur."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(kind(item), []).append(item)
    return list(found.values())


def _settings(result: Result) -> str:
    return json.dumps(result.protocol, sort_keys=True)


def _check_comparable(group: Sequence[Result | Run], mixed: bool) -> None:
    """Refuse different settings in one table; judges may differ where the answers are the same."""
    if mixed:
        return
    first = group[0]
    for other in group[1:]:
        a, b = dict(first.protocol), dict(other.protocol)
        if isinstance(first, Result) and isinstance(other, Result) and _same_answers(first, other):
            a.pop("judge", None), b.pop("judge", None)
        found = different(a, b)
        if found:
            raise ConfigError(
                f"{first.folder} and {other.folder} do not compare:\n  "
                + "\n  ".join(found)
                + "\nRun one of them with the other's settings, or give --mixed to see them in one"
                " table all the same"
            )


def _same_answers(a: Result, b: Result) -> bool:
    one, two = a.record["model"], b.record["model"]
    return one["digest"] == two["digest"] and a.record["seed"] == b.record["seed"]


# ---- benchmark results ---------------------------------------------------------------------------


def table(group: Sequence[Result]) -> str:
    """Return a table of results, the best by the headline metric first."""
    headline = group[0].record["headline"]
    measured = dict.fromkeys(itertools.chain(*(r.metrics for r in group)))
    names = sorted(measured, key=lambda name: name != headline)[:8]
    kinds = list(dict.fromkeys(map(_settings, group)))
    letters = {kind: chr(ord("a") + i % 26) for i, kind in enumerate(kinds)}
    heads = ["result", "model", *names, "tokens", "failed", "seed"]
    heads += ["settings"] if kinds[1:] else []
    rows = []
    for one in sorted(group, key=lambda r: -_rank(r.metrics.get(headline))):
        record = one.record
        cells = [one.name, record["model"]["source"]]
        cells += [shown(one.metrics.get(name)) for name in names]
        length = record["length"]["tokens_mean"]
        cells += [
            "" if length is None else f"{length:.0f}",
            f"{record['failures']} of {record['questions']}",
            str(record["seed"]),
        ]
        cells += [letters[_settings(one)]] if kinds[1:] else []
        rows.append(cells)
    text = markdown(heads, rows)
    for kind in kinds[1:]:
        gaps = "; ".join(different(json.loads(kinds[0]), json.loads(kind)))
        text += f"\n\nSettings {letters[kind]} differ from a: {gaps}"
    return text


def _rank(e: Estimate | None) -> float:
    return -math.inf if e is None or math.isnan(e.mean) else e.mean


def shown(e: Estimate | None) -> str:
    """Return an estimate with its interval, in as many digits as its size asks for."""
    if e is None or math.isnan(e.mean):
        return ""
    digits = 2 if abs(e.mean) >= 1.5 else 3
    if not (math.isfinite(e.low) and math.isfinite(e.high)):
        return f"{e.mean:.{digits}f}"
    return f"{e.mean:.{digits}f} [{e.low:.{digits}f}, {e.high:.{digits}f}]"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in markdown; bars and line breaks in the cells are escaped."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _seeds(group: Sequence[Result]) -> list[str]:
    """Return the means over seeds of results that differ in the seed alone."""
    found = []
    for several in grouped(group, lambda r: f"{_settings(r)} {r.record['model']['digest']}"):
        headline, model = several[0].record["headline"], several[0].record["model"]["source"]
        means = {
            r.record["seed"]: r.metrics[headline].mean for r in several if headline in r.metrics
        }
        found.append(([model, headline], means))
    return _means(["model", "metric", "mean", "seeds"], found)


def _means(heads: Sequence[str], found: Iterable[tuple[list[str], dict[Any, float]]]) -> list[str]:
    """Return a table of means over seeds; each row has its first cells and a value a seed."""
    rows = []
    for cells, values in found:
        if len(values) > 1:
            mean = over_seeds(list(values.values()))
            rows.append([*cells, shown(mean), str(mean.n)])
    return ["Over seeds:\n\n" + markdown(heads, rows)] if rows else []


def _pairs(group: Sequence[Result]) -> list[str]:
    """Return paired tests of the first result with the others, and the answers that changed."""
    first = group[0]
    metric = first.record.get("paired") or first.record["headline"]
    base = values_of(first.grades(), metric)
    rows, changed = [], []
    for other in group[1:]:
        values = values_of(other.grades(), metric)
        test = paired_test(base, values)
        if test is not None:
            gap, p = test.difference, f"{test.p_value:.4f}"
            rows.append([f"{other.name} - {first.name}", metric, shown(gap), p, str(gap.n)])
            changed.append(_changed(first, other, base, values))
    if not rows:
        return []
    heads = ["difference", "metric", "mean", "p (sign flips)", "questions"]
    return ["Paired, on the same questions:\n\n" + markdown(heads, rows), *changed]


def _changed(
    first: Result, other: Result, base: Mapping[str, float], values: Mapping[str, float]
) -> str:
    """Return the questions whose grade changed most, with both answers."""
    gaps = {name: values[name] - base[name] for name in base if name in values}
    most = sorted((n for n in gaps if gaps[n]), key=lambda n: -abs(gaps[n]))[:SHOWN]
    if not most:
        return ""
    one, two = first.grades(), other.grades()
    lines = [f"Changed most from {first.name} to {other.name}:"]
    for name in most:
        asked = one[name].get("turns", [""])[0]
        last = [str((grades[name].get("answers") or [""])[-1]) for grades in (one, two)]
        head = f"**{name}** ({gaps[name]:+.3g}) {_cut(asked)}"
        lines.append(_both(head, (first.name, other.name), last))
    return "\n".join(lines)


def _both(head: str, names: Sequence[str], texts: Sequence[str]) -> str:
    """Return two texts under each other, as an item of a list."""
    pairs = zip(names, texts, strict=True)
    return "\n    - ".join([f"- {head}", *(f"{name}: {_cut(text)}" for name, text in pairs)])


def _cut(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= CUT else words[: CUT - 1] + "…"


def _judges(group: Sequence[Result]) -> list[str]:
    """Return how far judges of the same answers agree."""
    rows = []
    for a, b in itertools.combinations(group, 2):
        if not _same_answers(a, b) or a.protocol["judge"] == b.protocol["judge"]:
            continue
        metric = a.record.get("paired") or a.record["headline"]
        found = agreement(values_of(a.grades(), metric), values_of(b.grades(), metric))
        if found:
            numbers = [f"{found[k]:.3f}" for k in ("spearman", "same_order")]
            rows.append([a.name, b.name, *numbers, f"{found['questions']:g}"])
    heads = ["judge of", "judge of", "Spearman", "same order", "questions"]
    return ["Agreement of judges:\n\n" + markdown(heads, rows)] if rows else []


# ---- runs ----------------------------------------------------------------------------------------


def _run_table(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        rate = _rate(run)
        rows.append(
            [
                run.folder.name,
                str(run.config.get("loss.name", "")),
                str(run.config.get("oracle.name", "")),
                str(run.config.get("seed", "")),
                shown(rate) if rate else "none" if run.result else "not finished",
                _final_length(run),
            ]
        )
    heads = ["run", "loss", "oracle", "seed", "final win rate", "final characters"]
    return markdown(heads, rows)


def _rate(run: Run) -> Estimate | None:
    result = run.result
    if result.get("win_rate") is None:
        return None
    low, high = (result.get(k) for k in ("low", "high"))
    return Estimate(
        float(result["win_rate"]),
        -math.inf if low is None else float(low),
        math.inf if high is None else float(high),
        int(result.get("prompts", 0)),
    )


def _final_samples(run: Run) -> dict[str, str]:
    """Return a run's last sampled response to each held-out prompt, the first sample of each."""
    path = run.folder / "samples.jsonl"
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    for row in read_records(path):
        if row.get("stage") != "start" and row.get("sample") == 0:
            found[str(row["prompt"])] = str(row["response"])
    return found


def _final_length(run: Run) -> str:
    texts = list(_final_samples(run).values())
    return f"{np.mean([len(text) for text in texts]):.0f}" if texts else ""


def _run_seeds(runs: Sequence[Run]) -> list[str]:
    """Return the final win rates over runs that differ in the seed alone."""
    found = []
    for several in grouped(runs, lambda run: json.dumps(run.config | {"seed": 0}, sort_keys=True)):
        names = ", ".join(run.folder.name for run in several)
        rates = {run.config.get("seed"): rate.mean for run in several if (rate := _rate(run))}
        found.append(([names], rates))
    return _means(["runs", "final win rate", "seeds"], found)


def _changed_samples(runs: Sequence[Run]) -> list[str]:
    """Return the held-out prompts to which the first two runs answer with the fewest common
    words."""
    if len(runs) < 2:
        return []
    one, two = (_final_samples(run) for run in runs[:2])
    common = [prompt for prompt in one if prompt in two]
    if not common:
        return []
    alike = token_jaccard([[one[p], two[p]] for p in common])[:, 0, 1]
    most = [common[i] for i in np.argsort(alike)[:SHOWN]]
    names = [run.folder.name for run in runs[:2]]
    lines = [f"Answered most differently by {names[0]} and {names[1]}:"]
    lines += [_both(f"**{_cut(p)}**", names, (one[p], two[p])) for p in most]
    return ["\n".join(lines)]


def draw_curves(runs: Sequence[Run], path: Path) -> bool:
    """Draw the runs' held-out win rates over iterations into a file; false if there are none."""
    lines = [(run.folder.name, line) for run in runs if (line := _curve(run))]
    if not lines:
        return False
    with drawing((8.4, 3.3)) as figure:
        ax = figure.subplots()
        whole_numbers(ax, "iteration")
        for (name, line), colour in zip(lines, itertools.cycle(COLOURS), strict=False):
            x, value, low, high = map(list, zip(*line, strict=True))
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            ax.plot(x, value, marker="o", markersize=3, color=colour, label=name)
        ax.axhline(0.5, color="black", linestyle="--", linewidth=0.8, alpha=0.6)
        ax.set_ylabel("held-out win rate")
        ax.legend()
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150))
    return True


def _curve(run: Run) -> list[tuple[float, float, float, float]]:
    found = []
    for row in read_records(run.folder / "metrics.jsonl"):
        values = row.get("values", {})
        if row.get("phase") == "evaluate" and "win_rate" in values:
            mean = float(values["win_rate"])
            low, high = (float(values.get(f"win_rate_{end}", mean)) for end in ("low", "high"))
            found.append((float(row["iteration"]), mean, low, high))
    return found


# ---- leaderboards and the command ----------------------------------------------------------------


def leaderboard(folder: Path) -> str | None:
    """Return the leaderboard of a folder of results: a table for each benchmark and each setting.

    None if the folder holds none.
    """
    results = [read_result(f) for f in sorted(folder.iterdir()) if is_result(f)]
    if not results:
        return None
    parts = ["# Leaderboard", "Results stand in one table if all their settings are the same."]
    for group in grouped(results, _settings):
        protocol = group[0].protocol
        judge = protocol["judge"]
        by = f", judged by {judge['model']}" if judge else ""
        sampling = ", ".join(f"{k} {v}" for k, v in protocol["sampling"].items())
        parts += [f"## {protocol['benchmark']}{by}", f"{protocol['version']}; {sampling}"]
        parts.append(table(group))
    return "\n\n".join(parts) + "\n"


def compare_command(folders: Sequence[str], *, mixed: bool, output: str) -> int:
    """Print a comparison; write it with curves to `output`, and a leaderboard into each folder of
    results."""
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ConfigError(
            "compare: give the folders of runs or results: --workdir=A --workdir=B, or one folder"
            " that holds several"
        )
    missing = [str(path) for path in paths if not path.is_dir()]
    if missing:
        raise ConfigError(f"compare: no such folder: {', '.join(missing)}")
    boards = [(path, leaderboard(path)) for path in paths if not (is_run(path) or is_result(path))]
    for path, text in boards:
        if text:
            _write(path / "leaderboard.md", text)
            print(f"leaderboard: {path / 'leaderboard.md'}")
    if len(paths) == 1 and any(text for _, text in boards) and not mixed and not output:
        print(boards[0][1])
        return 0
    text, runs = compare(paths, mixed=mixed)
    print(text)
    if output:
        place = Path(output)
        place.mkdir(parents=True, exist_ok=True)
        if draw_curves(runs, place / "curves.png"):
            text += "\n![held-out win rates over iterations](curves.png)\n"
        _write(place / "compare.md", text)
        print(f"comparison: {place / 'compare.md'}")
    return 0


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode("utf-8", errors="replace")))
