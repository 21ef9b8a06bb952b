"""Llama 3 on TPU slices that are only described: what a chip must hold as the mesh grows, and Tunix
on two of them.

    make slices

Every chip has one pair to train on (a prompt of 512 tokens, two responses of 512) and one prompt to
answer five times; weights, optimizer state and arithmetic are bfloat16, layers recomputed. Nothing
is run: the compiler says the memory. Writes benchmarks/SLICES.md and slices.json; slices that are
in slices.json already are not compiled again."""

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
from ssppo_jax.files import read_json, write_json
from ssppo_jax.plan.compile import GIB, plan, read_model
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
RESULTS = HERE / "slices.json"


def ours(model: str, topology: str) -> list[dict]:
    devices = machine_of(topology).devices
    chips = len(devices)
    given = {
        "model.param_dtype": "bfloat16",
        "optimizer.rounding": "nearest",  # as Tunix's: no float32 masters
        "train.batch_size": chips,
        "sampling.batch_size": chips,
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
    only = sys.argv[1:]
    work = [item for item in work if not only or item[2] in only]
    work.sort(
        key=lambda item: item[2] not in BESIDE
    )  # ours and Tunix on one slice one after the other
    with bar(len(work), what="compile", unit="slices") as progress:
        for who, model, topology in work:
            key = f"{who} {model} {topology}"
            if key not in found:
                found[key] = ours(model, topology) if who == "ours" else tunix(topology)
                write_json(RESULTS, found)
            progress.update()
    text = PAGE.format(beside=beside(found), rows=rows(found))
    (HERE / "SLICES.md").write_text(text, encoding="utf-8")
    print(HERE / "SLICES.md")


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
        "| model | slice | chips | HBM, GiB | train, GiB | binds | generate, GiB | binds |",
        "|---|---|---|---|---|---|---|---|",
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
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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

What binds is the slowest of the roofline's times (operations, memory, network).

{rows}
"""

if __name__ == "__main__":
    main()
