"""Compile a config's real steps for devices that are only described, and say whether they fit.

The compiler says what memory a step needs and what it sends. Operations are counted from the
architecture (`flops`). Memory traffic is bounded from below by what has to be read at least. No
step is run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.errors import JaxRuntimeError
from ml_collections import ConfigDict

from ssppo_jax.config import CONFIGS, expanded
from ssppo_jax.distributed.mesh import AXES, batch_ways, make_mesh, mesh_shape, shard_bytes
from ssppo_jax.errors import ConfigError
from ssppo_jax.models.arch import Arch
from ssppo_jax.models.hf_config import arch_from_hf
from ssppo_jax.plan.hlo import Collective, by_kind, collectives
from ssppo_jax.plan.steps import PHASES, Planned, plan_step, rows_per_prompt
from ssppo_jax.runs.throughput import Chip, chip_of
from ssppo_jax.runtime import Runtime, make_decoder
from ssppo_jax.weights import hf
from ssppo_jax.weights.source import check_no_run, resolve

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
    """Hold one compiled step. Bytes and seconds are of one chip and one step."""

    phase: str
    fits: bool
    memory: dict[str, float]  # what holds memory, by name, largest first: counted from shapes
    peak: float | None  # bytes the compiler needs; None where it gave up, see `refusal`
    refusal: str
    compile_seconds: float
    # bytes received, by kind; None: the compiler could not write its program down
    collectives: dict[str, float] | None
    flops: float  # recomputation included
    seconds: dict[str, float]  # at the roofline: compute, memory, and network if it is known
    tokens_per_second: float  # of completions, of all chips, at the slowest of these
    utilisation: float  # useful operations of the peak, at best

    @property
    def binds(self) -> str:
        return max(self.seconds, key=lambda need: self.seconds[need])

    @property
    def slowest(self) -> float:
        """Return the seconds of one step at the roofline."""
        return self.seconds[self.binds]


def read_model(source: str) -> Arch:
    """Read an architecture: a name of the package's, a folder, a config.json or a Hugging Face repo
    id.

    Raises:
      ConfigError: none of these.
    """
    path = expanded(source)
    own = CONFIGS / "models" / f"{source}.json"
    if own.is_file():
        return arch_from_hf(hf.read_json(own))
    if path.is_dir():
        check_no_run(path)
        return hf.read_arch(path)
    if source.startswith(("embedded:", "random:")) or source.lower().endswith(".gguf"):
        return hf.read_arch(resolve(source))
    if path.suffix == ".json" and path.is_file():
        return arch_from_hf(hf.read_json(path))
    from huggingface_hub import hf_hub_download  # only needed here

    repo, _, revision = source.partition("@")
    try:
        file = hf_hub_download(repo, "config.json", revision=revision or None)
        return arch_from_hf(hf.read_json(Path(file)))
    except (OSError, ValueError) as error:
        names = sorted(file.stem for file in (CONFIGS / "models").glob("*.json"))
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"model {source!r}: its config.json could not be read ({reason}); give --model=FILE,"
            f" or the name of one of the package's: {', '.join(names)}"
        ) from None


def described(config: ConfigDict, arch: Arch, devices: Sequence[jax.Device]) -> Runtime:
    """Return the config on devices that are only described: no weights, no tokenizer.

    Raises:
      ConfigError: a mesh that does not divide the model or is not of these devices.
    """
    shape = mesh_shape({axis: config.mesh[axis] for axis in AXES}, len(devices))
    mesh = make_mesh(shape, devices)
    decoder = make_decoder(config, arch, mesh)
    return Runtime(config, Path(), mesh, arch, decoder, None, arch.eos_ids or (0,))


def known_chip(devices: Sequence[jax.Device]) -> Chip:
    """Return the limits of these devices.

    Raises:
      ConfigError: nothing is known of them.
    """
    chip = chip_of(devices[0].device_kind)
    if chip is None:
        raise ConfigError(
            f"nothing is known of {devices[0].device_kind!r}; the chips known are in throughput.py"
        )
    return chip


def plan(
    config: ConfigDict,
    arch: Arch,
    devices: Sequence[jax.Device],
    phases: Sequence[str] = PHASES,
    progress: Callable[[], object] = lambda: None,
    *,
    per_node: int = 0,
) -> list[Plan]:
    """Compile the phases' steps for these devices, under the mesh and the sizes of the config.

    Args:
      per_node: devices that a fast network links; 0 for all. What comes from other devices passes
        the chip's network adapter.

    Raises:
      ConfigError: a mesh that does not divide the model or is not of these devices.
    """
    runtime, chip = described(config, arch, devices), known_chip(devices)
    found = []
    for phase in phases:
        planned = plan_step(runtime, phase)
        if planned is not None:
            found.append(compiled(runtime, planned, chip, per_node or len(devices)))
        progress()
    return found


def compiled(runtime: Runtime, planned: Planned, chip: Chip, per_node: int) -> Plan:
    """Compile one step and read its memory and what it sends from the program.

    Raises:
      ConfigError: cuDNN attention is asked for, and cuDNN is not installed.
    """
    start, peak, refusal = time.perf_counter(), None, ""
    sent: list[Collective] | None = []
    held = memory_of(runtime, planned)
    try:
        program = planned.step.lower(*planned.arguments).compile()
        peak = program.memory_analysis().peak_memory_in_bytes + planned.beside
        decodes = planned.phase == "generate"
        sent = _sent(program, runtime.config.sampling.max_new_tokens if decodes else 0)
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = _refusal(str(error), held)
    except RuntimeError as error:  # JAX asks cuDNN its version, also for a GPU that is described
        if "cuDNN" not in str(error):
            raise
        raise ConfigError(
            "model.attention=cudnn: compiling it needs cuDNN, which is not installed here; type"
            " pip install nvidia-cudnn-cu12, or set model.attention=einsum"
        ) from None
    seconds = time.perf_counter() - start
    chips = runtime.mesh.size
    needs = counted(runtime, planned, chip)
    if sent is not None:
        needs["network"] = sum(one.passes * one.size for one in sent) / chip.link
    if sent and per_node < chips:
        needs["network"] += sum(one.between_nodes(per_node) for one in sent) / chip.nic
    slowest = max(needs.values())
    return Plan(
        planned.phase,
        peak is not None and peak <= chip.memory,
        held,
        peak,
        refusal,
        seconds,
        None if sent is None else by_kind(sent),
        planned.flops / chips,
        needs,
        planned.tokens / slowest,
        planned.useful / chips / chip.flops / slowest,
    )


def counted(runtime: Runtime, planned: Planned, chip: Chip) -> dict[str, float]:
    """Return the seconds that a step needs at least, known before it is compiled."""
    return {
        "compute": planned.flops / runtime.mesh.size / chip.flops,
        "memory": traffic(runtime, planned) / chip.bandwidth,
    }


def _sent(program: jax.stages.Compiled, longest: int) -> list[Collective] | None:
    try:
        return collectives(program.as_text() or "", longest)
    except JaxRuntimeError:  # of some programs for 3D slices the compiler's own text is not sound
        return None


KNOBS = {
    "training state, waiting": "more chips in mesh.fsdp, or lora.rank",
    "parameters": (
        "more chips in mesh.fsdp or mesh.tensor (sampling: in sampling.mesh.tensor), or"
        " model.param_dtype=bfloat16 (sampling: sampling.param_dtype)"
    ),
    "optimizer": (
        "more chips in mesh.fsdp, lora.rank, optimizer.name=rmsprop in place of adamw, or"
        " optimizer.rounding=stochastic in place of master"
    ),
    "gradients": (
        "more chips in mesh.fsdp, lora.rank, or train.micro_batches=1, whose sums are not kept in"
        " float32"
    ),
    "kept activations": "model.remat=full, then a larger train.micro_batches",
    "attention scores": "model.attention_chunk=128",
    "logits": "a smaller model.logprob_chunk",
    "sampling's copy": (
        "more chips in sampling.mesh.tensor, or sampling.param_dtype=bfloat16 or int8"
    ),
    "keys and values": "a smaller sampling.batch_size, or more chips in mesh.tensor",
    "one layer, gathered": "more chips in mesh.tensor instead of mesh.fsdp",
}


def memory_of(runtime: Runtime, planned: Planned) -> dict[str, float]:
    """Count the bytes of one chip by what they hold, from shapes, the largest first: where to look
    when a step does not fit.
    """
    held = _held(runtime, planned)
    return dict(sorted(held.items(), key=lambda item: -item[1]))


def _held(runtime: Runtime, planned: Planned) -> dict[str, float]:
    c, arch = runtime.config, runtime.arch
    sampling = planned.phase == "generate"
    mesh = runtime.sampling_mesh if sampling else runtime.mesh
    ways, (*_, fsdp, tensor) = batch_ways(mesh.axis_sizes), mesh.axis_sizes
    params = runtime.abstract_sampling_params if sampling else runtime.abstract_params
    layers = shard_bytes(params["layers"]) / arch.num_layers
    size, heads = jnp.dtype(runtime.decoder.dtype).itemsize, arch.num_heads / tensor
    p, t = c.data.prompt_buckets[-1], c.sampling.max_new_tokens
    held = {"parameters": shard_bytes(params), "one layer, gathered": layers * fsdp}
    if planned.beside:
        held["training state, waiting"] = planned.beside
    if planned.phase == "relay":
        return held | {"sampling's copy": shard_bytes(runtime.abstract_sampling_params)}
    if sampling:
        slots, k = _batch(runtime, planned)
        slot, rows = runtime.slot(k), slots / ways
        return held | {"keys and values": rows * slot.cache, "logits": rows * slot.logits}
    rows, k = c.train.batch_size / c.train.micro_batches / ways, rows_per_prompt(runtime)
    chunk = min(c.model.attention_chunk or max(p, t), max(p, t))
    widest = max(min(p, chunk) * p, k * min(t, chunk) * (p + t))
    held["attention scores"] = rows * heads * 4 * widest
    held["logits"] = rows * k * t * min(c.model.logprob_chunk, arch.vocab_size) / tensor * 4
    if planned.phase == "train":
        state = planned.arguments[0]
        trained = shard_bytes(state.params)
        single = c.train.micro_batches == 1
        held["optimizer"] = shard_bytes(state.opt_state)
        held["gradients"] = trained if single else trained * 4 / runtime.param_dtype.itemsize
        per_token = float(arch.hidden_size)
        if c.model.remat != "full":
            wide = 2 * (arch.num_heads + arch.num_kv_heads) * arch.head_dim + 2 * arch.mlp_dim
            kept = {"none": 2, "dots": 1, "offload": 0}[c.model.remat]  # arrays of each product
            per_token = 2 * arch.hidden_size + wide / tensor * kept
        held["kept activations"] = rows * (p + k * t) * per_token * size * arch.num_layers
        if c.model.remat == "none":
            scores = p * p + k * t * (p + t)
            held["kept activations"] += rows * heads * 4 * scores * arch.num_layers
    return held


def _refusal(error: str, held: dict[str, float]) -> str:
    first = next(line for line in error.splitlines() if "RESOURCE_EXHAUSTED" in line)
    largest = next(iter(held))
    size = held[largest] / GIB
    return (
        f"the compiler gave up: {first[:300]}\n  the largest part is {largest} ({size:.2f} GiB):"
        f" try {KNOBS[largest]}"
    )


def traffic(runtime: Runtime, planned: Planned) -> float:
    """Return a lower bound of the bytes that one chip's memory moves in one step.

    Weights are read once a pass; parts of other chips are written when they arrive and then read.
    Gradients and optimizer state are read and written once. Keys and values are read once for every
    token that attends to them.
    """
    c = runtime.config
    if planned.phase == "relay":
        copies = runtime.abstract_params, runtime.abstract_sampling_params
        return float(sum(map(shard_bytes, copies)))
    sampling = planned.phase == "generate"
    mesh = runtime.sampling_mesh if sampling else runtime.mesh
    ways, fsdp = batch_ways(mesh.axis_sizes), mesh.shape["fsdp"]
    params = runtime.abstract_sampling_params if sampling else runtime.abstract_params
    gathered = shard_bytes(params) * fsdp * (2 if fsdp > 1 else 1)
    if sampling:
        (slots, k), t = _batch(runtime, planned), c.sampling.max_new_tokens
        # keys and values of a prompt are shared by its K
        seen = slots / ways * (c.data.prompt_buckets[-1] * t + k * t * (t + 1) / 2)
        return (t + 1) * gathered + seen * runtime.slot(k).token
    if planned.phase == "score":
        return gathered
    passes = 3 if c.model.remat == "full" else 2
    state = planned.arguments[0]
    # gradient and update twice, new parameters once
    update = 2 * shard_bytes(state.opt_state) + 5 * shard_bytes(state.params)
    kept = memory_of(runtime, planned)["kept activations"]
    return c.train.micro_batches * (passes * gathered + 2 * kept) + update


def _batch(runtime: Runtime, planned: Planned) -> tuple[int, int]:
    """Return the prompts of one step of sampling and the completions of each."""
    slots = len(planned.arguments[1].length)
    return slots, planned.tokens // (slots * runtime.config.sampling.max_new_tokens)
