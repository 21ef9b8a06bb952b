"""Write one self-contained HTML page from a run folder (`record.py` tells what is in it).

Every file may be missing or end in a torn line; the page says so and shows the rest.
"""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ssppo_jax.errors import UserError
from ssppo_jax.files import write_atomically
from ssppo_jax.runs.report import sections
from ssppo_jax.runs.report.record import TRAINED_ON, Run, finite, read_run
from ssppo_jax.runs.report.story import tell

PACKAGES = [
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "transformers",
    "matplotlib",
]


def build_report(workdir: str | os.PathLike) -> Path:
    """Write `report.html` into the run folder and return its path.

    Raises:
        UserError: the folder does not exist.
    """
    folder = Path(workdir)
    if not folder.is_dir():
        raise UserError(
            f"no run folder at {folder}: give the workdir of a run, the folder that holds"
            " metrics.jsonl"
        )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("page.html.j2").render(
        name=folder.resolve().name, **_contents(read_run(folder))
    )
    target = folder / "report.html"
    # Lone surrogates are legal in JSON, not in UTF-8.
    write_atomically(target, lambda file: file.write(page.encode("utf-8", errors="replace")))
    return target


def _contents(run: Run) -> dict[str, Any]:
    """Return what the page shows, by the names of the template."""
    held_out, held_out_caption = sections.held_out_results(run)
    topics, other_plots = sections.metric_topics(run)
    samples_shown, samples_folded, samples_left = sections.sample_cards(run)
    command = run.start.get("command")
    recorded = {key: value for key, value in run.start.items() if key != "command"}
    versions = recorded or _versions_here()
    config = json.dumps(run.config, indent=2, ensure_ascii=False)
    return {
        "story": tell(run),
        "given": run.given,
        "first": sections.first_cards(run),
        "tiles": _results(run) + _extent(run),
        "held_out": held_out,
        "held_out_caption": held_out_caption,
        # A run without any record is told of its pairs.
        "show_pairs": bool(run.pairs or not (run.groups or run.opponents or run.responses)),
        "pairs": sections.pair_margins(run),
        "show_groups": bool(run.groups),
        "groups": sections.group_examples(run),
        "opponents": sections.opponent_examples(run) if run.opponents else None,
        "topics": topics,
        "other_plots": other_plots,
        "samples_shown": samples_shown,
        "samples_folded": samples_folded,
        "samples_left": samples_left,
        "command": " ".join(map(str, command)) if isinstance(command, list) else command,
        "versions_recorded": bool(recorded),
        "versions": {k: v if isinstance(v, str) else json.dumps(v) for k, v in versions.items()},
        "config": None if run.config is None else config,
        "notes": run.notes,  # the sections add to them
    }


def _results(run: Run) -> list[tuple[str, str]]:
    """Return the final numbers: rewards with where they started, then the win rate."""
    tiles = []
    values = {key: value for key in run.result if (value := finite(run.result[key])) is not None}
    for name in [key for key in values if f"{key}_start" in values]:
        words = name.replace("_", " ")
        shown = f"{values[name]:.3f} ({values[f'{name}_start']:.3f})"
        tiles.append((f"final {words} (start)", shown))
        low, high = (values.get(f"{name}_gain_{end}") for end in ("low", "high"))
        if low is not None and high is not None:
            tiles.append((f"{words} gained, 95% interval", f"{low:.3f} to {high:.3f}"))
    for name in ("loss", "rewards/accuracies") if run.given else ():
        if name in values:
            tiles.append((f"held-out {name}", f"{values[name]:.3f}"))
    if "win_rate" in values:
        tiles.append(("final win rate", f"{values['win_rate']:.3f}"))
        if "low" in values and "high" in values:
            shown = f"{values['low']:.3f} to {values['high']:.3f}"
            tiles.append(("win rate, 95% interval", shown))
    if "prompts" in values:
        tiles.append(("held-out prompts", f"{values['prompts']:g}"))
    return tiles


def _extent(run: Run) -> list[tuple[str, str]]:
    """Return how much was trained."""
    tiles = []
    training = run.metrics[run.metrics.phase == "train"]
    if training.step.notna().any():
        tiles.append(("optimizer steps", f"{training.step.max():g}"))
    if training.iteration.nunique():
        tiles.append(("iterations", str(training.iteration.nunique())))
    for name in TRAINED_ON:
        if count := len(getattr(run, name)):
            tiles.append((f"{name} trained on", str(count)))
    return tiles


def _versions_here() -> dict[str, str]:
    python = {"python": platform.python_version()}
    return python | {name: metadata.version(name) for name in PACKAGES}
