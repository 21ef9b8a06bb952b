"""Llama 3 on machines that are only described: what a chip must hold as the mesh grows, Tunix on
two TPU slices, and an iteration of the shipped 8B config on slices and GPUs.

    make slices

As the mesh grows, every chip has one pair to train on (a prompt of 512 tokens, two responses of
512) and one prompt to answer five times; weights, optimizer state and arithmetic are bfloat16,
layers recomputed. Nothing is run: the compiler says the memory. Writes benchmarks/SLICES.md,
GPUS.md and slices.json; machines that are in slices.json already are not compiled again."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from ssppo_jax import schema
from ssppo_jax.distributed.progress import bar
from ssppo_jax.errors import ConfigError
from ssppo_jax.files import read_json, write_json
from ssppo_jax.plan.compile import GIB, described, known_chip, plan, read_model
from ssppo_jax.plan.iteration import PORTION, iteration_of
from ssppo_jax.plan.table import record_iteration
from ssppo_jax.plan.topology import machine_of
from ssppo_jax.runs.throughput import chip_of

HERE = Path(__file__).parent
ROOT = HERE.parent
SLICES = {
    "8b": (
        "v5e:4x4",
        "v5e:8x8",
        "v5e:2x2",
        "v5e:16x16",
        "v5p:2x2x1",
        "v5p:4x4x4",
        "v5p:4x8x8",
        "v6e:2x2",
        "v6e:8x8",
        "v6e:16x16",
    ),
    "70b": ("v5e:16x16", "v5p:4x4x4", "v5p:4x8x8", "v6e:8x8", "v6e:16x16"),
}
BESIDE = ("v5e:4x4", "v5e:8x8")  # where Tunix is compiled too
# An iteration of the shipped 8B config: what differs from the file. One GPU holds no float32 state
# of 8B parameters, one H100 no state of them all, and four nodes pass each other only gradients.
ALONE = {
    "sampling.mesh.tensor": "1",
    "model.param_dtype": "bfloat16",
    "optimizer.rounding": "stochastic",
}
ADAPTERS = ALONE | {"lora.rank": "64", "lora.alpha": "64"}
APART = {"mesh.replica": "4", "mesh.fsdp": "8"}
ITERATIONS = {
    "v5e:4x4": {},
    "v5e:8x8": {},
    "h100:1": ADAPTERS,
    "h100:8": {},
    "h100:4x8": APART,
    "h200:1": ALONE,
    "h200:8": {},
    "h200:4x8": APART,
}
PAPER = "| the paper, measured | 8 | | | | | 49, judging in it | | 1.5 | 16 | | 66 | |"
RESULTS = HERE / "slices.json"


def ours(model: str, topology: str) -> list[dict]:
    devices = machine_of(topology).devices
    chips = len(devices)
    given = {
        "model.param_dtype": "bfloat16",
        "optimizer.rounding": "nearest",  # as Tunix's: no float32 masters
        "train.batch_size": chips,
        "sampling.batch_size": chips,
        "sampling.mesh.data": 0,  # as in training
        "sampling.mesh.tensor": 0,
    }
    config = str(ROOT / "configs/llama3_8b_s_sppo.py")
    loaded = schema.load(config, {key: str(value) for key, value in given.items()}, chips)
    arch = read_model(str(ROOT / f"configs/models/llama3_{model}.json"))
    room = chip_of(devices[0].device_kind).memory
    return [
        {
            "phase": p.phase,
            "peak": None if p.peak is None else p.peak / GIB,
            "of": room / GIB,
            "binds": p.binds,
            "tokens_per_second": p.tokens_per_second,
        }
        | ({"compile_seconds": p.compile_seconds} if topology in BESIDE else {})
        for p in plan(loaded, arch, devices, ("train", "generate"))
    ]


def iteration(topology: str) -> dict:
    """Compile every phase of the shipped config and add them up."""
    machine = machine_of(topology)
    devices, given = machine.devices, ITERATIONS[topology]
    config = schema.load("llama3_8b_s_sppo", given, len(devices))
    arch = read_model("llama3_8b")
    runtime, chip = described(config, arch, devices), known_chip(devices)
    hosts = len({device.process_index for device in devices})
    try:
        found = plan(config, arch, devices, per_node=machine.per_node)
    except ConfigError as error:
        return {"chips": len(devices), "refused": str(error)}
    whole = iteration_of(runtime, found, chip, hosts=hosts, prompts=PORTION)
    return {
        "chips": len(devices),
        "of": chip.memory / GIB,
        "peaks": {p.phase: None if p.peak is None else p.peak / GIB for p in found},
        "rates": {p.phase: p.tokens_per_second for p in found},
        "iteration": None if whole is None else record_iteration(whole, 0.0),
    }


def tunix(topology: str) -> list[dict]:
    python = ROOT / ".venv-tunix/bin/python"
    if not python.is_file():
        raise SystemExit(f"{python} is missing: make slices makes it")
    done = subprocess.run(
        [python, HERE / "peer_tunix_slice.py", topology], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"Tunix on {topology} failed:\n{done.stderr[-2000:]}")
    return [json.loads(done.stdout.splitlines()[-1])]


def main() -> None:
    found = read_json(RESULTS) if RESULTS.is_file() else {}
    work = [("tunix", "8b", topology) for topology in BESIDE]
    work += [("ours", model, topology) for model, slices in SLICES.items() for topology in slices]
    work += [("iteration", "8b", topology) for topology in ITERATIONS]
    only = sys.argv[1:]
    work = [item for item in work if not only or item[2] in only]
    work.sort(
        key=lambda item: item[2] not in BESIDE
    )  # ours and Tunix on one slice one after the other
    makers = {
        "ours": ours,
        "tunix": lambda model, topology: tunix(topology),
        "iteration": lambda model, topology: iteration(topology),
    }
    with bar(len(work), what="compile", unit="machines") as progress:
        for who, model, topology in work:
            key = f"{who} {model} {topology}"
            if key not in found:
                found[key] = makers[who](model, topology)
                write_json(RESULTS, found)
            progress.update()
    parts = {"beside": beside(found), "rows": rows(found), "own": iterations(found, gpus=False)}
    (HERE / "SLICES.md").write_text(PAGE.format(**parts), encoding="utf-8")
    text = GPUS.format(own=iterations(found, gpus=True))
    (HERE / "GPUS.md").write_text(text, encoding="utf-8")
    print(HERE / "SLICES.md", HERE / "GPUS.md")


def beside(found: dict) -> str:
    lines = [
        "| slice | who | peak of a chip, GiB | of Tunix's | compile time, s | of Tunix's |",
        "|---|---|---|---|---|---|",
    ]
    for topology in BESIDE:
        theirs, mine = found.get(f"tunix 8b {topology}"), found.get(f"ours 8b {topology}")
        if not theirs or not mine:
            continue
        (theirs,), mine = theirs, mine[0]
        lines.append(
            f"| {topology} | Tunix, DPO | {theirs['peak']:.2f} | |"
            f" {theirs['compile_seconds']:.0f} | |"
        )
        shares = (mine[k] / theirs[k] for k in ("peak", "compile_seconds"))
        peak, seconds = (f"{share:.0%}" for share in shares)
        took = f"{mine['compile_seconds']:.0f}"
        lines.append(
            f"| {topology} | ssppo_jax, S-SPPO | {mine['peak']:.2f} | {peak} | {took} | {seconds} |"
        )
    return "\n".join(lines)


def rows(found: dict) -> str:
    lines = [
        "| model | slice | chips | HBM, GiB | train, GiB | binds | tokens/s | generate, GiB"
        " | binds | tokens/s |",
        "|" + "---|" * 10,
    ]
    for model, slices in SLICES.items():
        for topology in sorted(slices, key=lambda t: (t[:3], _chips(t))):
            phases = found.get(f"ours {model} {topology}")
            if not phases:
                continue
            cells = [
                f"Llama 3 {model.upper()}",
                topology,
                str(_chips(topology)),
                f"{phases[0]['of']:.0f}",
            ]
            for phase in phases:
                fits = phase["peak"] is not None and phase["peak"] <= phase["of"]
                peak = "refused" if phase["peak"] is None else f"{phase['peak']:.2f}"
                cells += [peak if fits else f"{peak}, does not fit", phase["binds"]]
                cells.append(f"{phase['tokens_per_second']:,.0f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def iterations(found: dict, *, gpus: bool) -> str:
    """Format an iteration of 20,000 prompts, in minutes, on slices or on GPUs."""
    heads = ["machine", "chips", "train, GiB", "generate, GiB", "sampling, tokens/s"]
    heads += ["moving weights, s", "generate", "judge", "embed", "score and train", "disk"]
    heads += ["iteration, min", "run, chip-hours"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for topology in ITERATIONS:
        one = found.get(f"iteration 8b {topology}")
        if topology.startswith("v") == gpus:
            continue
        if not one or "refused" in one:
            why = "no room to sample" if one else "not compiled here yet"
            cells = [topology, "", why, *[""] * (len(heads) - 3)]
            lines.append("| " + " | ".join(cells) + " |")
            continue
        cells = [topology, str(one["chips"])]
        cells += [_room(one["peaks"].get(phase), one["of"]) for phase in ("train", "generate")]
        cells.append(f"{one['rates'].get('generate', 0.0):,.0f}")
        if one["iteration"] is None:
            cells += [""] * (len(heads) - len(cells))
        else:
            seconds, total = one["iteration"]["seconds"], one["iteration"]
            cells.append(f"{seconds['relay']:.2f}")
            sums = [seconds["generate"], seconds["judge"], seconds["embed"]]
            sums += [seconds["score"] + seconds["train"]]
            sums += [seconds["checkpoint"] + seconds.get("initial policy", 0.0), total["total"]]
            cells += [f"{value / 60:.2f}" for value in sums]
            cells.append(f"{total['chip_hours']:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, PAPER])


def _room(peak: float | None, of: float) -> str:
    if peak is None:
        return "refused"
    return f"{peak:.2f} of {of:.0f}" + ("" if peak <= of else ", does not fit")


def _chips(topology: str) -> int:
    return math.prod(map(int, topology.partition(":")[2].split("x")))


PAGE = """# Slices that are only described

`make slices` wrote this. Every chip has one pair to train on (a prompt of 512 tokens with two
responses of 512, repulsion on) and one prompt to answer five times, 512 tokens each; weights,
optimizer state (RMSProp) and arithmetic are bfloat16, every layer is recomputed in the backward
pass, the mesh is fsdp alone. The TPU compiler says the memory; no step is run.

## Beside Tunix

Tunix 0.1.7: its Llama 3, its DPO loss on pairs of 2 x (512 + 512) tokens, `RematConfig.DECODER`,
the same optimizer. Compiled in one run, one after the other on the same machine.

{beside}

## As the mesh grows

What binds is the slowest of the roofline's times (operations, memory, network). Tokens/s are those
of completions, of all chips, at that time. Sampling here has training's layout, so each token
gathers the weights.

Most of these rows were compiled before traffic was counted as it is now. Where the network binds,
or nearly, the rates can change when slices.json is deleted and the page is made anew. The peak of
training on v5e:4x4 was compiled again: 3.64 GiB.

{rows}

## An iteration

The shipped 8B config as it is: 20,000 prompts, K = 5, 512 + 512 tokens, float32 parameters cut by
fsdp for training, bfloat16 weights cut by tensor=4 for sampling, as many slots as fit. Minutes.
Sampling, scoring, training and moving the weights are at the roofline, so they are bounds. Judging
(PairRM at 30% of the peak), embedding and the disk are assumed, as `plan` says on its last line.

{own}

The paper's row is S-SPPO's (arXiv 2606.01561), on 8 H100.
"""

GPUS = """# GPUs that are only described

`make slices` wrote this. An iteration of the shipped 8B config: 20,000 prompts, K = 5, 512 + 512
tokens. Nothing was run: memory and traffic are the compiler's, sampling, scoring, training and
moving the weights are at the roofline, so they are bounds. Judging (PairRM at 30% of the peak),
embedding and the disk are assumed, as `plan` says on its last line. Minutes.

{own}

- The paper's row is S-SPPO's (arXiv 2606.01561). It generates and judges in 49 minutes, builds
  pairs in 1.5 and trains in 16. A bound is no measurement: the gap is not a speed-up.
- One GPU holds no float32 state of 8B parameters. Rows of one GPU have
  `model.param_dtype=bfloat16`, `optimizer.rounding=stochastic` and `sampling.mesh.tensor=1`.
- One H100 does not hold the bfloat16 state either: the compiler wants 88 GiB of 80. Its row trains
  adapters of `lora.rank=64`.
- Four nodes (`4x8`) have `mesh.replica=4` and `mesh.fsdp=8`: only gradients pass between them.
"""

if __name__ == "__main__":
    main()
