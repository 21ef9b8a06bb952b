"""Sample the initial policy and label its responses by the hidden rule: the pipeline's data.

    python experiments/pipeline/label.py RUN

RUN/demonstrations.jsonl holds the best of 4 responses to 96 prompts, for SFT. RUN/pairs.jsonl holds
the best and the worst of 4 to the other training prompts, for the reward model. The prompts that
self-play holds out for its evaluation are in neither."""

import json
import sys
from pathlib import Path

from config import RULE, get_config

from ssppo_jax.data.order import split_prompts
from ssppo_jax.data.prepare import encode
from ssppo_jax.data.sources import quickstart
from ssppo_jax.files import write_records
from ssppo_jax.oracles.lexical import ORACLES
from ssppo_jax.oracles.protocol import values_of
from ssppo_jax.rollout.pairs import scores, select
from ssppo_jax.rollout.sample import sample_prompts
from ssppo_jax.runtime import ROLLOUT, build_runtime, sampling_params

DEMONSTRATIONS = 96


def main(folder):
    config = get_config()
    split = split_prompts(quickstart(), heldout=config.data.heldout, seed=config.seed)
    runtime = build_runtime(config)
    encoded, _ = encode(split.train, runtime.tokenizer, config.data)
    sampler = runtime.make_sampler(
        num_samples=config.sampling.num_samples, sampling=sampling_params(config)
    )
    key = runtime.key(ROLLOUT)
    found = sample_prompts(runtime, sampler, runtime.load_params(), encoded, key, what="sample")
    verdict = ORACLES["sentiment"](**RULE).ask([e.prompt for e in encoded], found.texts)
    winner, loser, tied = select(scores(values_of(verdict)))
    rows = [
        {"id": e.prompt.id, "prompt": e.prompt.text, "chosen": texts[w], "rejected": texts[l]}
        for e, texts, w, l, tie in zip(encoded, found.texts, winner, loser, tied, strict=True)
        if not tie
    ]
    shown = [
        {"id": row["id"], "prompt": row["prompt"], "completion": row["chosen"]}
        for row in rows[:DEMONSTRATIONS]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "demonstrations.jsonl", shown)
    write_records(folder / "pairs.jsonl", rows[DEMONSTRATIONS:])
    counts = {
        "demonstrations": len(shown),
        "pairs": len(rows) - len(shown),
        "tied": int(tied.sum()),
    }
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
