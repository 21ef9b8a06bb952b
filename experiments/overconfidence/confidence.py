"""Measure how certain the learned oracle is of near-duplicates, and how often it is right.

    python experiments/overconfidence/confidence.py DIR

asks it about the pairs of make_reward.py that it was not fitted on, and writes DIR/confidence.md.
Bins are of the similarity that the gate sees. Certainty is the mean of |2 P - 1|."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
from language import MEANING
from learned import FIT, SHARP, STUDY

from ssppo_jax.files import read_json, read_records
from ssppo_jax.oracles.links import preference_of
from ssppo_jax.oracles.reward_model import reward_model
from ssppo_jax.rollout.similarity import token_jaccard
from ssppo_jax.types import Prompt

BINS = (0.0, 0.4, 0.6, 0.77, 0.9, 1.0)  # 0.77 parts near-duplicates, as in language.py


def main(output: Path) -> None:
    rows = list(read_records(Path(STUDY.MODEL) / "confidence.jsonl"))
    rows = [row for row in rows if row["texts"][0] != row["texts"][1]]
    prompts = [
        Prompt(f"c{i}", ({"role": "user", "content": row["prompt"]},), {MEANING: row[MEANING]})
        for i, row in enumerate(rows)
    ]
    texts = [row["texts"] for row in rows]
    oracle = reward_model(source=str(FIT / "reward_model"), max_length=64, batch_size=256)
    verdict = oracle.ask(prompts, texts)
    calibrated = read_json(FIT / "result.json")["reward_temperature"]
    chances = {
        t: preference_of(verdict, temperature=t)[:, 0, 1] for t in (calibrated, SHARP * calibrated)
    }
    similarity = token_jaccard(texts)[:, 0, 1]
    worth = np.array([row["u"] for row in rows])
    text = table(similarity, worth[:, 0] - worth[:, 1], chances)
    output.mkdir(parents=True, exist_ok=True)
    (output / "confidence.md").write_text(text, encoding="utf-8")
    print(text)


def table(similarity: np.ndarray, gap: np.ndarray, chances: dict[float, np.ndarray]) -> str:
    """Return a row for each bin: pairs, those of equal u, certainty, and how often the oracle puts
    the response with the larger u first."""
    heads = ["similarity", "pairs", "of equal u", "ordered as u"]
    heads += [f"certainty, temperature {t:.2f}" for t in chances]
    heads += ["the same, equal u"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    sharp = list(chances.values())[-1]
    for low, high in itertools.pairwise(BINS):
        own = (similarity >= low) & (similarity < high)
        tied, clear = own & (gap == 0), own & (gap != 0)
        right = ((sharp > 0.5) == (gap > 0))[clear]
        cells = [f"{low:g} to {high:g}", str(own.sum()), _share(gap[own] == 0), _share(right)]
        cells += [_share(abs(2 * p - 1)[own]) for p in chances.values()]
        lines.append("| " + " | ".join([*cells, _share(abs(2 * sharp - 1)[tied])]) + " |")
    return "\n".join(lines) + "\n"


def _share(values: np.ndarray) -> str:
    """Write a mean with its standard error."""
    if len(values) < 2:
        return "-"
    return f"{values.mean():.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
