"""Judge a self-play run's held-out responses by the reward that it learned and by the hidden rule.

    python experiments/pipeline/judge.py RUN

RUN/play is the run, RUN/fit the reward model. The same responses are judged twice, so the two win
rates differ by their judge alone. Writes RUN/judged.json and RUN/judged.md."""

import json
import sys
from pathlib import Path

from config import RULE, get_config

from ssppo_jax.data.prepare import prepare_prompts
from ssppo_jax.evaluate import Estimate, compare, shown
from ssppo_jax.files import read_records, write_json
from ssppo_jax.oracles.lexical import ORACLES
from ssppo_jax.rollout.judge import build_oracle
from ssppo_jax.runs.folder import history_of
from ssppo_jax.runtime import build_runtime, with_source


def stages_of(path):
    """Held-out texts by stage and prompt, in the order of the file."""
    stages = {}
    for record in read_records(path):
        texts = stages.setdefault(record["stage"], {}).setdefault(record["prompt_id"], [])
        texts.append(record["response"])
    return stages


def main(folder):
    config = with_source(get_config(), str(folder / "sft"))
    config.oracle.source = str(folder / "fit" / "reward_model")
    runtime = build_runtime(config)
    history = history_of(config.model.source)
    heldout = prepare_prompts(
        config.data, runtime.tokenizer, seed=config.seed, history=history
    ).heldout
    judges = {"learned": build_oracle(config), "true": ORACLES["sentiment"](**RULE)}
    stages, found = stages_of(folder / "play" / "samples.jsonl"), {}
    lines = [
        "| held-out responses of | learned reward | hidden rule | tokens |",
        "|---|---|---|---|",
    ]
    start = [stages["start"][e.prompt.id] for e in heldout]
    for stage in stages:
        texts = [stages[stage][e.prompt.id] for e in heldout]
        lengths = [len(runtime.tokenizer(text)["input_ids"]) for group in texts for text in group]
        row = {"tokens": sum(lengths) / len(lengths)}
        if stage != "start":
            for name, oracle in judges.items():
                row[name] = compare(config, oracle, heldout, texts, start).win_rate._asdict()
        found[stage] = row
        rates = [
            shown(Estimate(**row[name])) if name in row else "0.5" for name in ("learned", "true")
        ]
        lines.append(f"| {stage} | {rates[0]} | {rates[1]} | {row['tokens']:.1f} |")
    write_json(folder / "judged.json", found)
    table = "\n".join(lines) + "\n"
    (folder / "judged.md").write_text(table, encoding="utf-8")
    print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
