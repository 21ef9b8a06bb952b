"""One self-contained HTML page from a run folder: plots, texts before and after, the exact config.

What a run folder holds is told in `run_record.py`. Every file may be missing or end in a torn line;
the page says so and shows the rest. Texts come from models and from strangers' prompt files: all is
escaped and the page runs no script."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path

from ssppo_jax.errors import UserError
from ssppo_jax.report import page
from ssppo_jax.report.curves import held_out_section, metric_sections
from ssppo_jax.report.record import TRAINED_ON, Run, finite, number, read_run
from ssppo_jax.report.texts import samples_section, trained_on_sections

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "transformers",
    "matplotlib",
)


def build_report(workdir: str | os.PathLike) -> Path:
    """Writes `report.html` into the run folder and returns its path.

    Raises:
        UserError: the folder does not exist, or matplotlib is not installed.
    """
    folder = Path(workdir)
    if not folder.is_dir():
        raise UserError(
            f"no run folder at {folder}: give the workdir of a run, the folder that holds"
            " metrics.jsonl"
        )
    run = read_run(folder)
    parts = (
        held_out_section,
        trained_on_sections,
        metric_sections,
        samples_section,
        _setup_section,
    )
    body = "".join(part(run) for part in parts)  # before the notes are shown, which it adds to
    whole = page.page(
        folder.resolve().name, page.tiles(_results(run) + _extent(run)), run.notes, body
    )
    target, partial = folder / "report.html", folder / "report.html.tmp"
    partial.write_text(
        whole, encoding="utf-8", errors="replace"
    )  # lone surrogates are legal in JSON, not in UTF-8
    os.replace(partial, target)
    return target


def _results(run: Run) -> list[tuple[str, str]]:
    """The final numbers: rewards with where they started, then the win rate."""
    out = []
    values = {key: value for key in run.result if (value := finite(run.result[key])) is not None}
    for name in [key for key in values if f"{key}_start" in values]:
        words = name.replace("_", " ")
        out.append(
            (f"final {words} (start)", f"{values[name]:.3f} ({values[f'{name}_start']:.3f})")
        )
        ends = [values.get(f"{name}_gain_{end}") for end in ("low", "high")]
        if None not in ends:
            out.append((f"{words} gained, 95% interval", f"{ends[0]:.3f} to {ends[1]:.3f}"))
    if "win_rate" in values:
        out.append(("final win rate", f"{values['win_rate']:.3f}"))
        if "low" in values and "high" in values:
            out.append(("win rate, 95% interval", f"{values['low']:.3f} to {values['high']:.3f}"))
    return out + ([("held-out prompts", f"{values['prompts']:g}")] if "prompts" in values else [])


def _extent(run: Run) -> list[tuple[str, str]]:
    """How much was trained."""
    training = [record for record in run.metrics if record.get("phase") == "train"]
    steps = [x for x in (finite(r.get("step")) for r in training) if x is not None]
    iterations = {r.get("iteration") for r in training if number(r.get("iteration")) is not None}
    out = [("optimizer steps", f"{max(steps):g}")] if steps else []
    out += [("iterations", str(len(iterations)))] if iterations else []
    counts = {name: len(getattr(run, name)) for name in TRAINED_ON}
    return out + [(f"{name} trained on", str(count)) for name, count in counts.items() if count]


def _setup_section(run: Run) -> str:
    command = run.start.get("command")
    command = " ".join(map(str, command)) if isinstance(command, list) else command
    shown = (
        f"<pre>{page.text(command)}</pre>"
        if command
        else page.missing("Not recorded (config.json).")
    )
    recorded = {key: value for key, value in run.start.items() if key != "command"}
    source = (
        "Recorded by the run."
        if recorded
        else "Of the machine that wrote this report; the run recorded none."
    )
    rows = [
        [key, v if isinstance(v, str) else json.dumps(v)]
        for key, v in (recorded or _versions_here()).items()
    ]
    config = page.missing("Not recorded (config.json).")
    if run.config is not None:
        config = f"<pre>{page.text(json.dumps(run.config, indent=2, ensure_ascii=False))}</pre>"
    return (
        page.section("Command", shown)
        + page.section("Versions", f"<p>{source}</p>" + page.table(["what", "value"], rows))
        + page.section("Configuration", config)
    )


def _versions_here() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
