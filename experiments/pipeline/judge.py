"""Set the fitted reward beside the hidden rule: on pairs that were not fitted on, and on what
self-play against the reward made.

    python experiments/pipeline/judge.py RUN

RUN/fit is the reward model, RUN/play the run; its held-out responses were judged by both, so two
win rates of a row differ by their judge alone. Writes RUN/judged.json, judged.md and judged.svg."""

import sys
from pathlib import Path

import numpy as np
from config import RULE
from matplotlib.figure import Figure

from ssppo_jax.evaluate import Estimate, intervals, shown
from ssppo_jax.files import read_json, read_records, write_json
from ssppo_jax.oracles.links import preference_of
from ssppo_jax.oracles.reward_model import reward_model
from ssppo_jax.runs.metrics import read_metrics
from ssppo_jax.types import Prompt

JUDGES = {"fitted reward": "", "hidden rule": "rule/", "`keywords`": "keywords/"}


def heldout(folder):
    """What reward and rule say of the pairs that the fit held out."""
    names = set(read_json(folder / "fit" / "split.json")["heldout"])
    rows = [row for row in read_records(folder / "pairs.jsonl") if row["id"] in names]
    oracle = reward_model(source=str(folder / "fit" / "reward_model"), max_length=256)
    prompts = [Prompt(row["id"], ({"role": "user", "content": row["prompt"]},)) for row in rows]
    verdict = oracle.ask(prompts, [[row["chosen"], row["rejected"]] for row in rows])
    temperature = read_json(folder / "fit" / "result.json")["reward_temperature"]
    fitted = preference_of(verdict, temperature=temperature)[:, 0, 1]
    rule = np.array([row["chosen_probs"] for row in rows])
    right = fitted > 0.5
    parts = {"right": right, "right_of_clear": right[rule > 0.75]}
    found = {name: intervals({name: x}, seed=0)[name]._asdict() for name, x in parts.items()}
    apart = {"fitted": fitted, "rule": rule}
    found |= {f"certainty_{who}": float(np.median(abs(p - 0.5))) for who, p in apart.items()}
    return found | {"temperature": temperature, "rule_temperature": RULE["temperature"]}


def course(folder):
    """Win rates over the start by each judge, with intervals, by iteration."""
    stages = []
    for record in read_metrics(folder / "play" / "metrics.jsonl"):
        values = record["values"]
        if record["phase"] != "evaluate" or "win_rate" not in values:
            continue
        stage = {"iteration": record["iteration"], "tokens": values["length_mean"]}
        for judge, prefix in JUDGES.items():
            name = f"{prefix}win_rate"
            parts = (values[name], values[f"{name}_low"], values[f"{name}_high"])
            stage[judge] = Estimate(*parts, int(values["prompts"]))._asdict()
        stages.append(stage)
    return stages


def table(found):
    pairs, lines = found["pairs"], []
    right, clear = (shown(Estimate(**pairs[name])) for name in ("right", "right_of_clear"))
    lines += [
        "| pairs that were not fitted on | fitted reward | hidden rule |",
        "|---|---|---|",
        f"| ordered as the rule does, all {pairs['right']['n']} | {right} | |",
        f"| those the rule puts above 0.75, {pairs['right_of_clear']['n']} | {clear} | |",
        "| median of \\|P − ½\\| | {certainty_fitted:.3f} | {certainty_rule:.3f} |".format(**pairs),
        "| temperature | {temperature:.3f} | {rule_temperature} |".format(**pairs),
        "",
        "| iteration | " + " | ".join(JUDGES) + " | tokens |",
        "|---|" + "---|" * (len(JUDGES) + 1),
    ]
    for stage in found["course"]:
        rates = " | ".join(shown(Estimate(**stage[judge])) for judge in JUDGES)
        lines.append(f"| {stage['iteration']} | {rates} | {stage['tokens']:.1f} |")
    return "\n".join(lines) + "\n"


def picture(stages, file):
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    at = np.array([stage["iteration"] for stage in stages])
    for shift, judge in zip((-0.06, 0.0, 0.06), JUDGES, strict=True):
        mean, low, high = (
            np.array([stage[judge][part] for stage in stages]) for part in ("mean", "low", "high")
        )
        bars = (mean - low, high - mean)
        axes.errorbar(at + shift, mean, bars, marker="o", capsize=3, label=judge.strip("`"))
    axes.axhline(0.5, color="grey", linewidth=0.8)
    axes.set(xlabel="iteration", ylabel="win rate over the start", xticks=at)
    axes.legend()
    figure.savefig(file, metadata={"Date": None})


def main(folder):
    found = {"pairs": heldout(folder), "course": course(folder)}
    write_json(folder / "judged.json", found)
    (folder / "judged.md").write_text(table(found), encoding="utf-8")
    picture(found["course"], folder / "judged.svg")
    print(table(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
