"""Run the plan command: load the config for the machine, compile, print, write plan.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ssppo_jax import schema
from ssppo_jax.distributed.progress import bar
from ssppo_jax.files import write_json
from ssppo_jax.models.arch import Arch
from ssppo_jax.plan.compile import described, known_chip, plan, read_model
from ssppo_jax.plan.iteration import Iteration, iteration_of
from ssppo_jax.plan.lengths import uneven_of
from ssppo_jax.plan.search import Tried, search
from ssppo_jax.plan.steps import PHASES
from ssppo_jax.plan.table import (
    describe,
    describe_iteration,
    ranking,
    record,
    record_iteration,
)
from ssppo_jax.plan.topology import Machine


def plan_command(
    path: str,
    overrides: dict[str, str],
    machine: Machine,
    *,
    model: str,
    phases: Sequence[str],
    searched: bool,
    prompts: int,
    price: float,
    lengths: bool,
    output: Path | None,
) -> int:
    """Print the plan of a config on described devices and the iteration it makes.

    Args:
      path: of the config.
      overrides: of its keys.
      machine: the described devices.
      model: in place of model.source; "" for that.
      phases: which steps to compile, when nothing is searched.
      searched: search layouts in place of compiling the config's own alone.
      prompts: of one iteration; 0: the config's.
      price: of one chip-hour; 0: no cost is said.
      lengths: say what padding is computed on responses of unequal length.
      output: folder for plan.json and iteration.json.

    Return 0 if every step fits (of a search: if any layout does), else 1.
    """
    devices = machine.devices
    config = schema.load(path, overrides, len(devices))
    source = model or config.model.source
    arch, chip = read_model(source), known_chip(devices)
    print(f"{path} on {len(devices)} x {chip.name}: {source}, nothing is run")
    with bar(len(phases), what="compile", unit="steps") as progress:
        found = plan(config, arch, devices, phases, progress.update, per_node=machine.per_node)
    for one in found:
        print(describe(one, chip))
    runtime = described(config, arch, devices)
    if lengths:
        print(uneven_of(runtime, found))
    iteration = iteration_of(runtime, found, chip, hosts=machine.hosts, prompts=prompts)
    records, fits = [record(one) for one in found], all(one.fits for one in found)
    best: Tried | None = None
    if searched:
        tried = _search(path, overrides, arch, machine, prompts)
        print(ranking(tried, iteration))
        own = math.inf if iteration is None else iteration.total
        best = tried[0] if tried[0].seconds < own else None
        print(_recommended(best, iteration))
        records += [record(p, one.training | one.sampling) for one in tried for p in one.plans]
        fits = fits or best is not None
    line = best.iteration if best is not None else iteration
    if line is not None:
        print(describe_iteration(line, price))
    elif set(PHASES) <= set(phases):
        print("no iteration: " + ", ".join(p.phase for p in found if not p.fits) + " does not fit")
    if output is not None:
        write_json(output / "plan.json", records)
        if line is not None:
            changed = {} if best is None else {"overrides": best.training | best.sampling}
            write_json(output / "iteration.json", record_iteration(line, price) | changed)
    return 0 if fits else 1


def _search(
    path: str, overrides: dict[str, str], arch: Arch, machine: Machine, prompts: int
) -> list[Tried]:
    def load(setting: dict[str, object]):
        mine = overrides | {key: str(value) for key, value in setting.items()}
        return schema.load(path, mine, len(machine.devices))

    with bar(None, what="compile", unit="layouts") as progress:
        return search(load, arch, machine, prompts=prompts, progress=progress.update)


def _recommended(best: Tried | None, configured: Iteration | None) -> str:
    """Write the overrides of the fastest layout as they are typed."""
    if best is None:
        own = "the config as it is; no layout is faster"
        none = "nothing: no layout fits; take more chips, or set lora.rank"
        return f"recommended: {none if configured is None else own}"
    typed = (f"--config.{key}={value}" for key, value in (best.training | best.sampling).items())
    return "recommended: " + " ".join(typed)
