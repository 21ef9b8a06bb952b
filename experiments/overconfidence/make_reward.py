"""Fit the learned oracle: a reward model on pairs of sentences that u labels.

    python experiments/overconfidence/make_reward.py

writes into runs/overconfidence-model the files pairs.jsonl and confidence.jsonl and the folder fit
(the run, with reward_model). Seeds are fixed. No pair has equal u: people who label pairs give no
ties either. So nothing that the model is fitted on says what to do with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from config import MODEL, get_config
from language import ASKS, MEANING, NOUNS, SEASONS, SLOTS, ask, drawn, sentence, utility

from ssppo_jax.files import write_records
from ssppo_jax.training.fit.loop import fit

PAIRS, HELD_OUT = 1024, 2048
MISTAKES = 0.25  # share of phrases that are not the one asked for


def drawn_pair(rng: np.random.Generator, i: int) -> dict:
    """Draw a prompt of either kind with two sentences, and u of both."""
    noun, verb, season = (str(rng.choice(words)) for words in (NOUNS, ASKS, SEASONS))
    asked = drawn(rng)
    prompt = ask(verb, season, noun, asked if i % 2 else None)
    texts = []
    for _ in range(2):
        said = asked if i % 2 else drawn(rng)
        other = {s: str(rng.choice(SLOTS[s])) for s in SLOTS if rng.random() < MISTAKES}
        texts.append(sentence(rng, noun, said | other))
    worth = [utility(prompt, text) for text in texts]
    return {"prompt": prompt.text, "texts": texts, "u": worth, MEANING: prompt.meta[MEANING]}


def labelled(pair: dict, i: int) -> dict:
    better = int(pair["u"][1] > pair["u"][0])
    chosen, rejected = pair["texts"][better], pair["texts"][1 - better]
    return {"id": f"p{i}", "prompt": pair["prompt"], "chosen": chosen, "rejected": rejected}


def main() -> None:
    folder, rng = Path(MODEL), np.random.default_rng(7)
    drawn_pairs = [drawn_pair(rng, i) for i in range(2 * PAIRS)]
    untied = [p for p in drawn_pairs if p["u"][0] != p["u"][1]][:PAIRS]
    write_records(folder / "pairs.jsonl", [labelled(p, i) for i, p in enumerate(untied)])
    write_records(folder / "confidence.jsonl", [drawn_pair(rng, i) for i in range(HELD_OUT)])
    fit(get_config("fit"), folder / "fit")


if __name__ == "__main__":
    main()
