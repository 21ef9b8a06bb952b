"""Run the plan command: load the config for the slice, compile, print, write plan.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from ssppo_jax import schema
from ssppo_jax.distributed.progress import bar
from ssppo_jax.files import write_json
from ssppo_jax.models.arch import Arch
from ssppo_jax.plan.compile import Plan, plan, rank, read_model, variants
from ssppo_jax.plan.table import describe, ranking, record
from ssppo_jax.plan.topology import Machine
from ssppo_jax.runs.throughput import chip_of


def plan_command(
    path: str,
    overrides: dict[str, str],
    machine: Machine,
    *,
    model: str,
    phases: Sequence[str],
    sweep: bool,
    output: Path | None,
) -> int:
    """Print the plan of a config on described devices.

    Return 0 if every step fits (of a sweep: if any does), else 1.
    """
    devices = machine.devices
    config = schema.load(path, overrides, len(devices))
    arch, chip = read_model(model or config.model.source), chip_of(devices[0].device_kind)
    assert chip is not None  # `machine_of` knows no others
    print(f"{path} on {len(devices)} x {chip.name}: {model or config.model.source}, nothing is run")
    if sweep:
        tried = _sweep(path, overrides, arch, devices)
        print(ranking(tried))
        records, fits = (
            [record(found, setting) for setting, found in tried],
            any(found.fits for _, found in tried),
        )
    else:
        with bar(len(phases), what="compile", unit="steps") as progress:
            found = plan(config, arch, devices, phases, progress.update, per_node=machine.per_node)
        for one in found:
            print(describe(one, chip))
        records, fits = [record(one) for one in found], all(one.fits for one in found)
    if output is not None:
        write_json(output / "plan.json", records)
    return 0 if fits else 1


def _sweep(
    path: str, overrides: dict[str, str], arch: Arch, devices: Sequence[jax.Device]
) -> list[tuple[dict[str, object], Plan]]:
    """Compile the train step under every possible variant of the config."""
    tried = []
    settings = variants(schema.load(path, overrides, len(devices)), arch, len(devices))
    with bar(len(settings), what="compile", unit="variants") as progress:
        for setting in settings:
            mine = overrides | {key: str(value) for key, value in setting.items()}
            config = schema.load(path, mine, len(devices))
            tried.append((setting, plan(config, arch, devices, ("train",))[0]))
            progress.update()
    return rank(tried)
