"""Sample the initial policy and label its responses by the hidden rule: the pipeline's data.

    python experiments/pipeline/label.py RUN

RUN/demonstrations.jsonl holds the best of 4 responses to 96 prompts, for SFT. RUN/pairs.jsonl is
for the reward model: of each other training prompt the best response beside the worst, and the
second beside the third, with the chance that the rule gives the better one. The prompts that
self-play holds out for its evaluation are in neither."""

import json
import sys
from pathlib import Path

import numpy as np
from config import RULE, get_config

from ssppo_jax.data.order import split_prompts
from ssppo_jax.data.prepare import encode
from ssppo_jax.data.sources import quickstart
from ssppo_jax.files import write_records
from ssppo_jax.oracles.lexical import ORACLES
from ssppo_jax.oracles.protocol import values_of
from ssppo_jax.rollout.pairs import scores
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
    preference = values_of(verdict)
    shown, pairs, tied = [], [], 0
    for b, order in enumerate(np.argsort(-scores(preference), axis=1, kind="stable")):
        prompt, texts = encoded[b].prompt, found.texts[b]
        row = {"id": prompt.id, "prompt": prompt.text}
        if len(shown) < DEMONSTRATIONS:
            shown.append(row | {"completion": texts[order[0]]})
            continue
        for i in range(len(order) // 2):
            w, l = order[i], order[-1 - i]
            p = float(preference[b, w, l])
            tied += p == 0.5
            if p != 0.5:
                pair = {"chosen": texts[w], "rejected": texts[l], "chosen_probs": p}
                pairs.append(row | {"id": f"{prompt.id}-{i}"} | pair)
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "demonstrations.jsonl", shown)
    write_records(folder / "pairs.jsonl", pairs)
    counts = {"demonstrations": len(shown), "pairs": len(pairs), "tied": tied}
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
