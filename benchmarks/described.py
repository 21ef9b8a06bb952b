"""Hold programs for machines that are only described to what they must send between chips.

    make described                              # v5e:4x4 and h100:8
    python benchmarks/described.py v5e:4x4x2    # others, with the compilers on PYTHONPATH

The shipped 8B config is compiled. Fully sharded training gathers each layer's matrices twice and
the head three times, and reduces and scatters each gradient once. The decoding loop gathers no
weight and no logits. Ends with an error where a program does otherwise. Nothing is run."""

from __future__ import annotations

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from ssppo_jax import schema
from ssppo_jax.distributed.mesh import batch_ways
from ssppo_jax.distributed.progress import bar
from ssppo_jax.plan.compile import GIB, described, read_model
from ssppo_jax.plan.hlo import Collective, by_kind, collectives
from ssppo_jax.plan.steps import plan_step
from ssppo_jax.plan.topology import Machine, machine_of
from ssppo_jax.runtime import Runtime, rollout_params

MACHINES = ("v5e:4x4", "h100:8")
# What a ring receives more than the closed form: its first part once more.
SLACK = 1.10


def main() -> int:
    names, wrong = sys.argv[1:] or MACHINES, 0
    with bar(2 * len(names), what="compile", unit="programs") as progress:
        for name in names:
            machine = machine_of(name)
            slices = len(machine.devices) // machine.per_node
            own = {"mesh.replica": str(slices), "mesh.fsdp": str(machine.per_node)}
            config = schema.load("llama3_8b_s_sppo", own, len(machine.devices))
            runtime = described(config, read_model("llama3_8b"), machine.devices)
            for check, phase in ((training, "train"), (decoding, "generate")):
                planned = plan_step(runtime, phase)
                assert planned is not None
                text = planned.step.lower(*planned.arguments).compile().as_text()
                longest = config.sampling.max_new_tokens if phase == "generate" else 0
                for line, holds in check(runtime, machine, collectives(text, longest)):
                    print(f"{name} {phase}: {line}: {'as it must be' if holds else 'WRONG'}")
                    wrong += not holds
                progress.update()
    return 1 if wrong else 0


def training(runtime: Runtime, machine: Machine, sent: list[Collective]) -> list[tuple[str, bool]]:
    """Compare what a training step gathers, scatters and passes on with closed forms."""
    arch, chunk = runtime.arch, runtime.config.model.logprob_chunk
    matrices = (x for x in jax.tree.leaves(runtime.abstract_params["layers"]) if x.ndim > 2)
    layers = 2.0 * sum(int(np.prod(x.shape)) for x in matrices)  # bytes in bfloat16
    head = 2.0 * arch.hidden_size * chunk * -(-arch.vocab_size // chunk)
    found = by_kind(sent)
    whole = sum(2 * one.size * one.passes for one in sent if _is_whole(runtime, one))
    lines = [
        _compared("gathered", found.get("all-gather", 0.0), 2 * layers + 3 * head),
        _compared("reduced and scattered", found.get("reduce-scatter", 0.0), layers + 2 * head),
        (f"weights' gradients all-reduced whole {whole / GIB:.2f} GiB", whole == 0),
    ]
    if machine.per_node < len(machine.devices):
        embedding = 2.0 * 2 * arch.vocab_size * arch.hidden_size  # in float32
        own = (layers + 2 * head + embedding) / machine.per_node
        between = sum(one.between_nodes(machine.per_node) for one in sent)
        lines.append(_compared("between slices, a chip", between, own))
    return lines


def _is_whole(runtime: Runtime, one: Collective) -> bool:
    """Return whether an all-reduce passes an array as large as a layer's smallest matrix."""
    return one.kind == "all-reduce" and not one.slices and one.size / 2 >= _smallest(runtime, 1)


def _smallest(runtime: Runtime, ways: int) -> float:
    """Return the bytes, in bfloat16, of a layer's smallest matrix cut so many ways."""
    matrices = (x for x in jax.tree.leaves(runtime.abstract_params["layers"]) if x.ndim > 2)
    return min(2.0 * int(np.prod(x.shape[1:])) for x in matrices) / ways


def _compared(what: str, found: float, wanted: float) -> tuple[str, bool]:
    text = f"{what} {found / GIB:.2f} GiB, closed form {wanted / GIB:.2f}"
    return text, wanted / SLACK <= found <= wanted * SLACK


def decoding(runtime: Runtime, machine: Machine, sent: list[Collective]) -> list[tuple[str, bool]]:
    """Look for a weight among what the loops over layers gather, of the prompt and of tokens, and
    for logits among what the loop over tokens gathers."""
    del machine
    arch, config, mesh = runtime.arch, runtime.config, runtime.sampling_mesh
    tokens = config.sampling.max_new_tokens
    loops = {arch.num_layers: "", arch.num_layers * tokens: "", tokens: "a token"}
    inside = [one for one in sent if one.passes in loops and one.kind != "all-reduce"]
    layers = max((one.size for one in inside if one.passes != tokens), default=0.0)
    token = max((one.size for one in inside if one.passes == tokens), default=0.0)
    weight = _smallest(runtime, mesh.shape["tensor"])
    sampler = runtime.make_sampler(
        num_samples=config.sampling.num_samples, sampling=rollout_params(config)
    )
    rows = sampler.slots * config.sampling.num_samples / batch_ways(tuple(mesh.shape.values()))
    logits = 4.0 * rows * arch.vocab_size / mesh.shape["tensor"]  # bytes that a device has
    again = [one for one in sent if one.passes in (tokens, arch.num_layers * tokens)]
    step = sum(one.size * one.passes for one in again) / tokens / 2**20
    return [
        (_largest("the loops over layers", layers, "smallest weight", weight), layers < weight),
        (_largest("the loop over tokens", token, "logits of a device", logits), token < logits),
        (f"a token's step receives {step:.0f} MiB by {len(again)} collectives", bool(again)),
    ]


def _largest(where: str, size: float, what: str, limit: float) -> str:
    return f"largest array gathered in {where} {size / 2**20:.2f} MiB, {what} {limit / 2**20:.2f}"


if __name__ == "__main__":
    sys.exit(main())
