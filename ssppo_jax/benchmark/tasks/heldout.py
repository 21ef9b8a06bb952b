"""Held-out win rate of any run, by any oracle: what `evaluate` says, as a benchmark's result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ssppo_jax.benchmark.contract import Benchmark, Whole
from ssppo_jax.config import call_kwargs, flatten
from ssppo_jax.evaluate import Estimate, evaluate
from ssppo_jax.files import read_records, to_json
from ssppo_jax.oracles import ORACLES
from ssppo_jax.types import Failed


def heldout(config: ConfigDict, *, baseline: str = "embedded:smollm2") -> Benchmark:
    """Compare a model's answers to held-out prompts with a baseline's, by the config's oracle.

    The prompts are those of `--config`'s data source that neither model was trained on.

    Args:
        baseline: the model to compare with: anything that `model.source` may be.
    """

    def whole(folder: Path) -> Whole:
        found = evaluate(config, candidate=config.model.source, baseline=baseline, output=folder)
        metrics = {"win_rate": Estimate(**found["win_rate"])}
        metrics |= {
            name: Estimate(**change["candidate"]) for name, change in found["rewards"].items()
        }
        answers: dict[str, list[str]] = {}
        for row in read_records(folder / "samples.jsonl"):
            if row["stage"] == "final":
                answers.setdefault(row["prompt_id"], []).append(row["response"])
        rows = [
            {"id": name, "answers": texts}
            | (
                {"grade": {"win_rate": found["by_prompt"][name]}}
                if name in found["by_prompt"]
                else {"failed": "the oracle failed at this prompt"}
            )
            for name, texts in answers.items()
        ]
        dropped = len(found["prompts"].get("too_long", []))
        notes = [f"{dropped} held-out prompts are too long and left out"] if dropped else []
        return Whole(metrics, notes, {}, rows)

    def grade(*_: Any) -> Failed:
        return Failed("the oracle grades")

    settings = call_kwargs(ORACLES, config.oracle)
    version = (
        f"held-out win rate against {baseline} by oracle {config.oracle.name} {to_json(settings)},"
        f" data {to_json(flatten(config.data))}, evaluation {to_json(flatten(config.eval))}"
    )
    return Benchmark(version, [], grade, headline="win_rate", whole=whole)


BENCHMARKS = {"heldout": heldout}
