"""Ask trained policies a second question: what is left after training on one turn?

    python experiments/smollm/second_turn.py runs/smollm [SEED ...]

asks each finished run's policy, and the start beside it, the run's held-out prompts, and a second
question after its own answer. u (`style.py`) judges both answers. It writes a file for each seed
into the folder second_turn, with a record for each policy and turn. Without seeds it asks those
that have no file yet."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from style import utility

import ssppo_jax
from ssppo_jax.data import SOURCES
from ssppo_jax.files import read_json, write_json

START = "embedded:smollm2"
SECOND = (
    "Can you say that in a simpler way?",
    "Please give me an example.",
    "What else should I know?",
    "Why is that so?",
)
SAMPLES = 4
LONGER = {"data.max_prompt_length": 104, "data.prompt_buckets": (48, 104)}
SETTINGS = {"temperature": 0.7, "max_new_tokens": 24}


def asked(folder: Path) -> list[str]:
    """Return a run's held-out prompts."""
    held = read_json(folder / "split.json")["heldout"]
    return [p.text for p in SOURCES["quickstart"]() if p.id in held]


def answers(policy, prompts: list[str]) -> dict[int, list[str]]:
    """Return the texts of the first and of the second answers."""
    first = ssppo_jax.sample(policy, prompts, num_samples=SAMPLES, **SETTINGS)
    chats = [
        [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": said},
            {"role": "user", "content": SECOND[(row + column) % len(SECOND)]},
        ]
        for row, (prompt, group) in enumerate(zip(prompts, first, strict=True))
        for column, said in enumerate(group)
    ]
    second = ssppo_jax.sample(policy, chats, num_samples=1, seed=1, **SETTINGS)
    return {1: [text for group in first for text in group], 2: [text for (text,) in second]}


def records(label: str, seed: int, policy, prompts: list[str]) -> list[dict]:
    """Return u, commas and the share of different pairs of words of a policy's answers by turn."""
    found = []
    for turn, texts in answers(policy, prompts).items():
        pairs = [pair for t in texts for pair in zip(t.split(), t.split()[1:], strict=False)]
        found.append(
            {
                "label": label,
                "seed": seed,
                "turn": turn,
                "u": float(np.mean([utility(text) for text in texts])),
                "commas": float(np.mean([text.count(",") for text in texts])),
                "distinct_2": len(set(pairs)) / max(1, len(pairs)),
            }
        )
    return found


def main(workdir: Path, *seeds: int) -> None:
    runs = [r for r in read_json(workdir / "sweep.json")["runs"] if r["status"] == "done"]
    config = ssppo_jax.configure("quickstart", LONGER)
    start, output = ssppo_jax.load_policy(START, config), workdir / "second_turn"
    output.mkdir(exist_ok=True)
    waiting = [s for s in sorted({run["seed"] for run in runs}) if not _file(output, s).is_file()]
    for seed in seeds or waiting:
        own = {
            run["label"]: workdir / Path(run["folder"]).name for run in runs if run["seed"] == seed
        }
        prompts = asked(next(iter(own.values())))
        found = records("start", seed, start, prompts)
        for label, folder in own.items():
            policy = ssppo_jax.load_policy(folder / "policy", config)
            policy.samplers = start.samplers  # compiled once
            found += records(label, seed, policy, prompts)
        write_json(_file(output, seed), found)
        print(f"seed {seed}: {_file(output, seed)}")


def _file(output: Path, seed: int) -> Path:
    return output / f"{seed}.json"


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
