"""Write the model card of an exported policy from the run's own record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssppo_jax.config import expanded
from ssppo_jax.runs.report.record import learns_from_given

UNUSED = ("oracle.", "sampling.", "group.", "advantage.")  # where responses are given
SHOWN = (  # settings in the card's table; config.json of the run has all
    "seed", "loss.", "pairs.", "group.", "advantage.", "oracle.", "optimizer.", "train.",
    "sampling.", "similarity.", "lora.", "data.",
)  # fmt: skip
SECRETS = re.compile(r"key|token$|password|secret", re.IGNORECASE)
KNOWN_BASES = {"embedded:smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
IN_A_CELL = str.maketrans({"|": "\\|", "\n": " "})  # what would end a cell of a table
UNKNOWN = "other"  # the Hub's word for a licence that it has no name for


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings but for those whose names sound like a secret's."""
    return {k: v for k, v in config.items() if not SECRETS.search(k.rpartition(".")[2])}


def licence_of(source: str, folder: Path) -> str:
    """Return the licence that a model's own card states, in the Hub's words; "" if it states none.

    Args:
      source: as in `model.source`.
      folder: where the model lies; its README.md may begin with a block of metadata.
    """
    if source in KNOWN_BASES:
        return KNOWN_BASES[source][1]
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = (
        re.search(r"^license:\s*[\"']?([\w.-]+)[\"']?\s*$", head[1], re.MULTILINE) if head else None
    )
    return found[1] if found else ""


def model_card(
    config: Mapping[str, Any],
    result: Mapping[str, Any],
    *,
    method: str,
    licence: str,
    prompts: Mapping[str, Any],
    version: str,
    adapter: bool = False,
) -> str:
    """Return README.md: method, data, settings, evaluation with its interval, licence, citation.

    Args:
      config: {"a.b": value} of every key of the run.
      result: as in result.json.
      method: the loss's docstring; its first paragraph describes it, and its arXiv numbers are
        cited.
      licence: of the base model (`licence_of`).
      prompts: as in prompts.json, with the numbers of prompts.
      version: of this package.
      adapter: the folder holds adapters in PEFT's format, and not a whole model.
    """
    config = public(config)
    source = str(config["model.source"])
    base = KNOWN_BASES.get(source, (source, ""))[0]
    named = re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", base) and not expanded(base).exists()
    name = str(config["loss.name"])
    papers = re.findall(r"arXiv\s*:?(\d{4}\.\d{5})", method)
    head = ["---", f"license: {licence or UNKNOWN}"]
    head += [f"base_model: {base.partition('@')[0]}"] if named else []
    head += [f"library_name: {'peft' if adapter else 'transformers'}"]
    head += ["pipeline_tag: text-generation", "tags:", "- ssppo_jax", f"- {name}", "---"]
    what = "adapters for" if adapter else "a model trained from"
    cited = [f"- The method: https://arxiv.org/abs/{paper}" for paper in papers]
    parts = [
        "\n".join(head),
        f"# {base.rpartition('/')[2]} after {name}",
        f"This folder holds {what} `{base}`. It was made with ssppo_jax {version}.",
        "## Method",
        f"`{name}`: {' '.join(method.partition(chr(10) * 2)[0].split())}",
        _how(config),
        "## Data",
        _data(config, prompts),
        "## Evaluation",
        *_evaluation(config, result),
        "## Settings",
        "\n".join(["| key | value |", "|---|---|", *_settings(config)]),
        "## Licence",
        _licence(base, licence),
        "## Citation",
        "\n".join([*cited, f"- The software: ssppo_jax {version}"]),
    ]
    return "\n\n".join(parts) + "\n"


def _how(config: Mapping[str, Any]) -> str:
    """Return where the responses came from and who judged them."""
    if learns_from_given(config):
        return "The responses were given with the prompts. None was sampled, and no oracle judged."
    return (
        f"The policy sampled {config['sampling.num_samples']} responses per prompt in each of"
        f" {config['train.iterations']} iterations, and the oracle `{config['oracle.name']}` judged"
        " them."
    )


def _data(config: Mapping[str, Any], prompts: Mapping[str, Any]) -> str:
    given = {k.removeprefix("data.source."): v for k, v in config.items() if "data.source." in k}
    name = given.pop("name", "")
    settings = ", ".join(f"{key} `{value}`" for key, value in given.items() if value != "")
    return (
        f"Prompts: source `{name}`{' (' + settings + ')' if settings else ''};"
        f" {prompts.get('train_prompts', '?')} trained on, {prompts.get('heldout_prompts', '?')}"
        f" held out, {len(prompts.get('too_long', []))} left out as too long."
    )


def _evaluation(config: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """Return paragraphs of what was measured, and of what that does not tell."""
    lines: list[str] = []
    if learns_from_given(config):
        rows = f"{result['prompts']:g} held-out rows" if "prompts" in result else "held-out rows"
        for key in [key for key in result if f"{key}_low" in result]:
            low, high = result[f"{key}_low"], result[f"{key}_high"]
            lines.append(
                f"- `{key}` of {rows}: {result[key]:.4g} (95% interval {low:.4g} to {high:.4g})"
            )
        measured = "\n".join(lines) or "No rows were held out, so nothing was measured."
        return [measured, "This says how likely given responses are, not what people prefer."]
    if "win_rate" in result:
        lines.append(
            f"Win rate against the starting model: **{result['win_rate']:.3f}** (95% interval"
            f" {result['low']:.3f} to {result['high']:.3f}, over {int(result['prompts'])} held-out"
            f" prompts with {result.get('samples', '?')} responses each)."
        )
    for key, value in result.items():
        if key.endswith("_gain") and f"{key}_low" in result:
            part = key.removesuffix("_gain")
            lines.append(
                f"`{part}`: {result[part]:.3f}, from {result[part + '_start']:.3f} (gain"
                f" {value:.3f}, {result[key + '_low']:.3f} to {result[key + '_high']:.3f})."
            )
    lines.append(
        f"The oracle `{config['oracle.name']}` that trained the policy judged this. It measures"
        " what was optimised, not what people prefer."
    )
    return lines


def _settings(config: Mapping[str, Any]) -> list[str]:
    unused = UNUSED if learns_from_given(config) else ()
    return [
        f"| `{key}` | `{str(value).translate(IN_A_CELL)}` |"
        for key, value in sorted(config.items())
        if key.startswith(SHOWN) and not key.startswith(unused) and value != ""
    ]


def _licence(base: str, licence: str) -> str:
    if licence:
        return f"`{base}` is under `{licence}`, and what is derived from it keeps its terms."
    return (
        f"The folder of `{base}` does not state a licence. Look it up before you publish this"
        " model, and correct the first lines of this file."
    )
