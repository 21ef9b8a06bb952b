"""Ours and the peers on the same weights and shapes, interleaved in one run: `make bench`. Writes
benchmarks/README.md.

Every task of every side is a process of its own, so that a peak is of that task alone. A round is
all sides once; there are several rounds, and before the first the log-probs of the same tokens are
compared."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import work
from safetensors.numpy import load_file, save_file

from ssppo_jax.distributed.progress import bar
from ssppo_jax.files import read_json, write_json
from ssppo_jax.models import flops
from ssppo_jax.weights import hf
from ssppo_jax.weights.source import resolve

HERE = Path(__file__).parent
ROOT = HERE.parent
SIDES = {
    "ours": (".venv", "ours.py"),
    "torch": (".venv-trl", "peer_torch.py"),
    "tunix": (".venv-tunix", "peer_tunix.py"),
}
NAMES = {
    ("sample", "torch"): "transformers `generate`",
    ("queue", "torch"): "transformers `generate`",
    ("train", "torch"): "TRL `DPOTrainer`",
    ("sample", "tunix"): "Tunix `Sampler`",
    ("queue", "tunix"): "Tunix `Sampler`",
    ("train", "tunix"): "Tunix DPO step",
    ("offline", "torch"): "TRL `DPOTrainer`",
}
TASKS = ("sample", "train", "queue")
LENGTHS = {  # what stands beside each other on long-tailed lengths: (side, task)
    "ssppo_jax, every row at its T slots": ("ours", "lengths_whole"),
    "ssppo_jax, cut by length and packed": ("ours", "lengths"),
    "TRL `DPOTrainer`, one pair at a time": ("torch", "lengths"),
}
LAYERS = int(os.environ.get("BENCH_LENGTHS_LAYERS", "4"))  # of the model, there
WORK = {
    "sample": f"sample {work.PROMPTS} prompts x {work.SAMPLES}, {work.PROMPT} + {work.NEW} tokens",
    "queue": f"sample {work.QUEUE} prompts x {work.QUEUE_SAMPLES} that wait in line",
    "train": (
        f"one optimizer step on {work.PAIRS} pairs, {work.PROMPT} + {work.NEW} tokens each,"
        " reference included"
    ),
}


def run(side: str, folder: Path, *tasks: str) -> dict[str, dict]:
    """The records of one process. A side that fails is reported, not hidden."""
    venv, file = SIDES[side]
    python = Path(os.environ.get("BENCH_PYTHON") or ROOT / venv / "bin/python")
    if not python.is_file():
        raise SystemExit(f"{python} is missing: make bench makes it")
    quiet = os.environ | {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "SSPPO_PROGRESS": "off",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [python, HERE / file, folder, *tasks], env=quiet, capture_output=True, text=True
    )
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"task"')]
    if done.returncode:
        print(f"{side} {' '.join(tasks)} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
    return {record["task"]: record for record in records}


def compare(folder: Path, sides: list[str]) -> dict[str, float]:
    """The largest difference of summed log-probs from ours, relative to their size."""
    found = {side: np.array(run(side, folder, "logprobs")["logprobs"]["values"]) for side in sides}
    gaps = {
        side: float(np.max(np.abs(values / found["ours"] - 1)))
        for side, values in found.items()
        if side != "ours"
    }
    wrong = {
        side: gap
        for side, gap in gaps.items()
        if not gap < (1e-4 if work.DTYPE == "float32" else 1e-2)
    }
    if wrong:
        raise SystemExit(
            f"log-probs of the same tokens differ by {wrong}: the sides do not run the same model"
        )
    return gaps


def measure(
    folder: Path, sides: list[str], rounds: int, tasks: tuple[str, ...]
) -> dict[tuple[str, str], list[dict]]:
    """(task, side) -> a record of each round; the queue has one."""
    found: dict[tuple[str, str], list[dict]] = {}
    short = [
        (task, side) for _ in range(rounds) for task in tasks if task != "queue" for side in sides
    ]
    plan = short + [("queue", side) for side in sides if "queue" in tasks]  # minutes each: once
    with bar(len(plan), what="bench", unit="tasks") as progress:
        for task, side in plan:
            if record := run(side, folder, task).get(task):
                found.setdefault((task, side), []).append(record)
            progress.update()
    return found


def first_layers(folder: Path, count: int, into: Path) -> Path:
    """A copy of a model that has its first layers alone: enough to compare steps by."""
    into.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file() and not file.name.endswith(".safetensors"):
            shutil.copy(file, into)
    config = read_json(into / "config.json") | {"num_hidden_layers": count}
    write_json(into / "config.json", config)
    kept = {
        name: value
        for file in folder.glob("*.safetensors")
        for name, value in load_file(file).items()
        if ".layers." not in name or int(name.split(".layers.")[1].split(".")[0]) < count
    }
    save_file(kept, into / "model.safetensors", metadata={"format": "pt"})
    return into


def lengths(folder: Path, sides: list[str], rounds: int) -> dict:
    """Steps on pairs whose responses differ in length: a record of each round for each of
    `LENGTHS`."""
    asked = {who: of for who, of in LENGTHS.items() if of[0] in sides}
    found: dict[str, list[dict]] = {who: [] for who in asked}
    with tempfile.TemporaryDirectory() as place:
        short = first_layers(folder, LAYERS, Path(place) / "model")
        with bar(rounds * len(asked), what="lengths", unit="tasks") as progress:
            for who, (side, task) in list(asked.items()) * rounds:
                if record := run(side, short, task).get(task):
                    found[who].append(record)
                progress.update()
    load = os.getloadavg()[1]
    return {"records": found, "machine": machine(), "date": str(date.today()), "load": load}


def offline(folder: Path, sides: list[str], rounds: int) -> dict:
    """DPO on the same given pairs by each side: a record of each round.

    Before that the log-probs of the same tokens are compared.

    Raises:
      SystemExit: log-probs or losses differ, so the sides do not train the same.
    """
    sides = [side for side in sides if side != "tunix"]  # it has no data set of preferences
    gaps = compare(folder, sides)
    found: dict[str, list[dict]] = {side: [] for side in sides}
    with bar(rounds * len(sides), what="offline", unit="tasks") as progress:
        for side in sides * rounds:
            if record := run(side, folder, "offline").get("offline"):
                found[side].append(record)
            progress.update()
    if missing := [side for side, records in found.items() if not records]:
        raise SystemExit(f"offline DPO: no result of {', '.join(missing)}, for the reason above")
    losses = [record["losses"] for records in found.values() for record in records]
    gap = float(np.ptp(losses, axis=0).max())
    if work.DTYPE == "float32" and not gap < 1e-3:
        raise SystemExit(f"offline DPO: the losses of the same steps differ by {gap}: {losses}")
    load = os.getloadavg()[1]
    made = {"records": found, "gaps": gaps, "gap": gap, "machine": machine()}
    return made | {"date": str(date.today()), "load": load}


def useful(folder: Path) -> dict[str, float]:
    """Operations of each task that are no padding and no recomputation; of training the reference's
    pass too."""
    arch = hf.read_arch(folder)
    prompt, pair = np.full(work.PAIRS, work.PROMPT), np.full((work.PAIRS, 2), work.NEW)
    train = flops.train_step(arch, prompt, pair) + flops.forward(arch, prompt, pair)
    rows = {"sample": (work.PROMPTS, work.SAMPLES), "queue": (work.QUEUE, work.QUEUE_SAMPLES)}
    sampled = {
        task: flops.forward(arch, np.full(b, work.PROMPT), np.full((b, k), work.NEW))
        for task, (b, k) in rows.items()
    }
    return sampled | {"train": train}


def table(
    found: dict[tuple[str, str], list[dict]], ceiling: dict[str, float], count: dict[str, float]
) -> str:
    lines = [
        (
            "| work | who | seconds, median (least to most) | peak GiB | slower than ours | our"
            " memory | of the ceiling |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        mine = found.get((task, "ours"))
        for side in SIDES:
            records = found.get((task, side))
            if not records:
                continue
            times, peak = [r["seconds"] for r in records], max(r["peak_gib"] for r in records)
            middle = statistics.median(times)
            share = count[task] / middle / ceiling["train" if task == "train" else "decode"]
            beside = (
                ""
                if side == "ours" or not mine
                else f"{middle / statistics.median(r['seconds'] for r in mine):.2f}x"
            )
            memory = (
                ""
                if side == "ours" or not mine
                else f"{max(r['peak_gib'] for r in mine) / peak:.2f}"
            )
            spread = f"{middle:.1f} ({min(times):.1f} to {max(times):.1f})"
            cells = (
                WORK[task],
                NAMES.get((task, side), "ssppo_jax"),
                spread,
                f"{peak:.2f}",
                beside,
                memory,
                f"{share:.0%}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


APART = {"lengths": lengths, "offline": offline}  # a section of the page each


def main() -> None:
    rounds = int(os.environ.get("ROUNDS", "3"))
    sides = os.environ.get("SIDES", "ours torch tunix").split()
    tasks = tuple(os.environ.get("TASKS", "sample train queue lengths offline").split())
    folder = resolve(os.environ.get("BENCH_MODEL", "embedded:smollm2"))
    if set(tasks) <= APART.keys():  # into the page as it stands
        own = {task: APART[task](folder, sides, rounds) for task in tasks}
        made = read_json(HERE / "results.json") | own
        found: dict[tuple[str, str], list[dict]] = {}
        for record in made["records"]:
            found.setdefault((record["task"], record["side"]), []).append(record)
        return write(made, found, folder)
    gaps = compare(folder, sides)
    ceiling = run("ours", folder, "ceiling")["ceiling"]
    found = measure(folder, sides, rounds, tuple(t for t in tasks if t in TASKS))
    groups, iteration = (run("ours", folder, task).get(task) for task in ("groups", "iteration"))
    made = {
        "machine": machine(),
        "date": str(date.today()),
        "rounds": rounds,
        "gaps": gaps,
        "ceiling": ceiling,
    }
    made |= {
        "groups": groups,
        "iteration": iteration,
        "records": [{"side": side} | r for (_, side), rs in found.items() for r in rs],
    }
    for task, measured in APART.items():
        made[task] = measured(folder, sides, rounds) if task in tasks else None
    write(made, found, folder)


def write(made: dict, found: dict[tuple[str, str], list[dict]], folder: Path) -> None:
    """Keep what was measured and make the page of it."""
    write_json(HERE / "results.json", made)
    text = page(made, table(found, made["ceiling"], useful(folder)))
    (HERE / "README.md").write_text(text, encoding="utf-8")
    print(HERE / "README.md")


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n")
    cpu = next(
        (line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor()
    )
    return f"{os.cpu_count()} cores, {cpu}, Linux {platform.release()}"


PAGE = """# Ours and the peers on the same work

`make bench` wrote this on {date}: {machine}; SmolLM2-135M-Instruct, float32; rounds: {rounds},
all sides once in each (the queue once), every task a process of its own, nothing else on the
machine. Before that the summed log-probs of the same tokens were compared: largest relative
difference from ours {gaps}. On a GPU: [GPU.md](GPU.md); described TPU slices:
[SLICES.md](SLICES.md).

{rows}

The ceiling is what the matrix products of these shapes alone reach in JAX: {decode:.0f} GFLOP/s
when decoding 128 rows, {train:.0f} in training. Shares count useful operations: no padding, no
recomputation, prompts once. In training the peers hold a second model as the reference; ours is
the policy itself, scored before its updates, as in every iteration of a run. What was aimed at,
what was reached and where the rest goes: [NOTES.md](NOTES.md).
"""
ONCE = """
A group step (GRPO, reference included) of 2 prompts of {long} tokens with 8 completions of {new}
each takes {seconds:.1f} s with each prompt computed once and {repeated:.1f} s with it repeated
for every completion, {ratio:.2f} times as long; the tokens are {tokens:.2f} times as many.
"""


ITERATION = """
The quickstart's second self-play iteration takes {seconds:.0f} s, compilation behind it: sampling
{generate:.1f}, judging and comparing what was not judged meanwhile {judge:.1f}, scoring
{score:.1f}, training {train:.1f}, everything else {host:.1f} (the rollout on disk, the next
portion of prompts).
"""


UNEQUAL = """
## Responses of unequal length

{pairs} pairs of {prompt} + at most {longest} tokens, {tokens} real ones in all
(`TASKS=lengths make bench`).
Lengths are drawn log-normal with mean 250 and 99th percentile 900, seed {seed}; these have mean
{mean:.0f} and are at most {most}. The model is the first {layers} layers of the same one.
One optimizer step, reference included. Measured on {date}: {machine};
rounds: {rounds}. Other work ran beside it (load {load:.0f}), so processor seconds are compared.

| who | seconds | processor seconds | real tokens a processor second | padding |
|---|---|---|---|---|
{rows}

Cut and packed, there are {gain:.1f} times as many real tokens a processor second as with every
row at its T slots. Padding is the share of tokens computed. Micro-batches have {budget} tokens at
most, as many as two whole rows. TRL pads a pair to its longer response.
"""


def _unequal(made: dict) -> str:
    """The section of long-tailed lengths."""
    own = work.lengths()
    tokens = int(own.sum()) + work.LONG_TAILED * work.PROMPT
    pairs = work.LONG_TAILED * work.PROMPT + 2 * own.max(1).sum()
    lines, rates = [], {}
    for who, records in made["records"].items():
        if not records:
            continue
        spent, wall = ([r[name] for r in records] for name in ("cpu_seconds", "seconds"))
        rates[who] = tokens / statistics.median(spent)
        beside = 1 - tokens / (pairs + work.LONG_TAILED * work.PROMPT)  # TRL has prompts twice
        cells = (
            who,
            f"{statistics.median(wall):.0f}",
            f"{statistics.median(spent):.0f} ({min(spent):.0f} to {max(spent):.0f})",
            f"{rates[who]:.1f}",
            f"{records[0].get('padding', beside):.0%}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    before, after = (rates.get(who, float("nan")) for who in list(LENGTHS)[:2])
    values = {"pairs": work.LONG_TAILED, "prompt": work.PROMPT, "longest": work.LONGEST}
    values |= {"mean": own.mean(), "most": own.max()}
    values |= {"seed": work.SEED, "tokens": tokens, "layers": LAYERS, "gain": after / before}
    values |= {name: made[name] for name in ("date", "machine", "load")}
    values |= {"rounds": max(map(len, made["records"].values())), "rows": "\n".join(lines)}
    return UNEQUAL.format(**values, budget=2 * (work.PROMPT + 2 * work.LONGEST))


OFFLINE = """
## Offline DPO

`train` on given pairs beside TRL's `DPOTrainer`, from the rows to the last step: the same {pairs}
pairs of about 128 + 2 x 128 tokens, {epochs} epochs of one step each (`TASKS=offline make bench`).
Seconds contain tokenising, compiling and the reference's log-probs, which both sides compute once.
Before that the summed log-probs of the same tokens were compared: largest relative difference
{apart:.1e}. The losses of the steps differ by at most {gap:.0e}. Measured on {date}: {machine};
rounds: {rounds}; load {load:.0f}.

| who | seconds, median (spread) | processor seconds | peak GiB | slower | our memory |
|---|---|---|---|---|---|
{rows}
"""


def _offline(made: dict) -> str:
    """The section of offline DPO."""
    ours = made["records"]["ours"]
    lines = []
    for side, records in made["records"].items():
        times = [r["seconds"] for r in records]
        peak, middle = max(r["peak_gib"] for r in records), statistics.median(times)
        slower = middle / statistics.median(r["seconds"] for r in ours)
        share = max(r["peak_gib"] for r in ours) / peak
        cells = (
            NAMES.get(("offline", side), "ssppo_jax"),
            f"{middle:.0f} ({min(times):.0f} to {max(times):.0f})",
            f"{statistics.median(r['cpu_seconds'] for r in records):.0f}",
            f"{peak:.2f}",
            "" if side == "ours" else f"{slower:.2f}x",
            "" if side == "ours" else f"{share:.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    values = {name: made[name] for name in ("gap", "date", "machine", "load")}
    values |= {"pairs": work.PAIRS, "epochs": work.EPOCHS, "rows": "\n".join(lines)}
    values["apart"] = max(made["gaps"].values(), default=0.0)
    return OFFLINE.format(**values, rounds=max(map(len, made["records"].values())))


def page(made: dict, rows: str) -> str:
    gaps = ", ".join(f"{side} {gap:.1e}" for side, gap in made["gaps"].items())
    rates = {
        name: value / 1e9 for name, value in made["ceiling"].items() if name in ("decode", "train")
    }
    text = PAGE.format(
        **{k: made[k] for k in ("date", "machine", "rounds")}, gaps=gaps, rows=rows, **rates
    )
    return (
        text
        + _once(made["groups"])
        + (ITERATION.format(**made["iteration"]) if made.get("iteration") else "")
        + (_offline(made["offline"]) if made.get("offline") else "")
        + (_unequal(made["lengths"]) if made.get("lengths") else "")
    )


def _once(groups: dict | None) -> str:
    if not groups:
        return ""
    seconds, repeated, new = groups["seconds"], groups["repeated"], work.NEW
    tokens = 8 * (work.LONG + new) / (work.LONG + 8 * new)
    values = {
        "seconds": seconds,
        "repeated": repeated,
        "ratio": repeated / seconds,
        "tokens": tokens,
    }
    return ONCE.format(**values, long=work.LONG, new=new)


if __name__ == "__main__":
    main()
