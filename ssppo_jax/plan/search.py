"""Search layouts for training and sampling together, by the time of an iteration.

A layout's time has a lower bound that is counted before anything is compiled. Layouts are compiled
in the order of their bounds, until no bound is below the best time found. So the result is that of
compiling all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from ssppo_jax.errors import ConfigError
from ssppo_jax.models.arch import Arch
from ssppo_jax.plan.compile import Plan, compiled, counted, described, known_chip, memory_of
from ssppo_jax.plan.iteration import Iteration, iteration_of
from ssppo_jax.plan.steps import Planned, plan_step
from ssppo_jax.plan.topology import Machine
from ssppo_jax.runtime import Runtime

Setting = dict[str, object]  # config overrides
TRAINING, SAMPLING = ("score", "train"), ("relay", "generate")


class Tried(NamedTuple):
    """Hold one layout of both kinds and its iteration."""

    training: Setting
    sampling: Setting
    plans: list[Plan]
    iteration: Iteration | None  # None: it does not fit

    @property
    def seconds(self) -> float:
        return float("inf") if self.iteration is None else self.iteration.total


def training_settings(config: ConfigDict, arch: Arch, machine: Machine) -> list[Setting]:
    """List ways to cut the training mesh, micro-batches and remat; impossible ones are left out.

    Over several nodes the parameters are also cut inside one node only (`mesh.replica`).
    """
    chips, found = len(machine.devices), list[Setting]()
    nodes = chips // machine.per_node
    for replica, tensor in itertools.product(sorted({1, nodes}), (1, 2, 4, 8)):
        cut = replica * tensor
        if chips % cut or arch.num_kv_heads % tensor or arch.mlp_dim % tensor:
            continue
        fsdp = chips // cut
        mesh: Setting = {
            "mesh.replica": replica,
            "mesh.data": 1,
            "mesh.fsdp": fsdp,
            "mesh.tensor": tensor,
        }
        for micro in (1, 2, 4):
            if config.train.batch_size % (micro * replica * fsdp) or arch.hidden_size % fsdp:
                continue
            for remat in ("none", "dots", "full"):
                found.append({**mesh, "train.micro_batches": micro, "model.remat": remat})
    return found


def sampling_settings(config: ConfigDict, arch: Arch, machine: Machine) -> list[Setting]:
    """List ways to cut the sampling mesh; weights that are no int8 have the products' dtype."""
    half = jnp.dtype(config.model.dtype) == jnp.bfloat16
    dtype = "int8" if config.sampling.param_dtype == "int8" else "bfloat16" if half else "model"
    return [
        {
            "sampling.mesh.data": len(machine.devices) // tensor,
            "sampling.mesh.tensor": tensor,
            "sampling.param_dtype": dtype,
            "sampling.batch_size": 0,
        }
        for tensor in (1, 2, 4, 8)
        if not (machine.per_node % tensor or arch.num_kv_heads % tensor or arch.mlp_dim % tensor)
    ]


def search(
    load: Callable[[Setting], ConfigDict],
    arch: Arch,
    machine: Machine,
    *,
    prompts: int,
    progress: Callable[[], object] = lambda: None,
) -> list[Tried]:
    """Return the layouts that were compiled, the fastest first.

    Args:
      load: the config with overrides added.
      arch: the model.
      machine: what to plan for.
      prompts: of one iteration, as in `iteration_of`.
      progress: called after each layout that was compiled.

    Raises:
      ConfigError: no layout can be compiled at all.
    """
    searcher = _Searcher(load, arch, machine, prompts)
    base = load({})
    pairs = itertools.product(
        training_settings(base, arch, machine), sampling_settings(base, arch, machine)
    )
    bounds = []
    for training, sampling in pairs:
        bound = searcher.bound(training, sampling)
        if bound is not None:
            bounds.append((bound, training, sampling))
    if not bounds:
        raise ConfigError(
            "--search: no layout holds the model and its training state; take more chips, or set"
            " lora.rank"
        )
    bounds.sort(key=lambda one: one[0])
    tried: list[Tried] = []
    too_large: list[Setting] = []  # of training
    for bound, training, sampling in bounds:
        if tried and bound >= min(one.seconds for one in tried):
            break
        if training in too_large:
            continue
        tried.append(searcher.compile(training, sampling))
        if any(not plan.fits for plan in tried[-1].plans if plan.phase in TRAINING):
            too_large.append(training)
        progress()
    return sorted(tried, key=lambda one: one.seconds)


class _Searcher:
    """Compile each step once, although many layouts share it."""

    def __init__(self, load, arch: Arch, machine: Machine, prompts: int):
        self.load, self.arch, self.machine, self.prompts = load, arch, machine, prompts
        self.chip = known_chip(machine.devices)
        self.plans: dict[tuple, Plan | None] = {}

    def bound(self, training: Setting, sampling: Setting) -> float | None:
        """Return the least seconds of an iteration; None where the layout cannot be."""
        try:
            runtime = self._runtime(training, sampling)
            plans = [self._once(runtime, phase, self._counted) for phase in (*SAMPLING, *TRAINING)]
        except ConfigError:
            return None
        found = self._iteration(runtime, [plan for plan in plans if plan is not None])
        return None if found is None else found.total

    def compile(self, training: Setting, sampling: Setting) -> Tried:
        """Return one layout with its steps compiled."""
        runtime = self._runtime(training, sampling)
        plans = []
        for phase in (*TRAINING, *SAMPLING):
            plan = self._once(runtime, phase, self._compiled)
            if plan is not None:
                plans.append(plan)
                if not plan.fits:
                    break
        return Tried(training, sampling, plans, self._iteration(runtime, plans))

    def _runtime(self, training: Setting, sampling: Setting) -> Runtime:
        return described(self.load(training | sampling), self.arch, self.machine.devices)

    def _iteration(self, runtime: Runtime, plans: list[Plan]) -> Iteration | None:
        hosts = self.machine.hosts
        return iteration_of(runtime, plans, self.chip, hosts=hosts, prompts=self.prompts)

    def _once(
        self, runtime: Runtime, phase: str, make: Callable[[Runtime, Planned], Plan]
    ) -> Plan | None:
        """Return a step as `make` plans it, the same at every call; None where there is none."""
        key = (make, *self._key(runtime, phase))
        if key not in self.plans:
            planned = plan_step(runtime, phase)
            self.plans[key] = planned and make(runtime, planned)
        return self.plans[key]

    def _compiled(self, runtime: Runtime, planned: Planned) -> Plan:
        return compiled(runtime, planned, self.chip, self.machine.per_node)

    def _counted(self, runtime: Runtime, planned: Planned) -> Plan:
        held = memory_of(runtime, planned)
        # Of what is counted, this is held at one time for certain.
        least = sum(held.get(name, 0.0) for name in ("parameters", "optimizer", "kept activations"))
        fits = least + planned.beside <= self.chip.memory
        needs = counted(runtime, planned, self.chip)
        return Plan(planned.phase, fits, held, None, "", 0.0, None, 0.0, needs, 0.0, 0.0)

    def _key(self, runtime: Runtime, phase: str) -> tuple:
        """Name what a step depends on; a sampling step sees of training what stands beside it."""
        c, mesh = runtime.config, tuple(runtime.sampling_mesh.axis_sizes)
        if phase in TRAINING:
            return (phase, *runtime.mesh.axis_sizes, c.train.micro_batches, c.model.remat)
        if phase == "relay":
            return (phase, *runtime.mesh.axis_sizes, *mesh)
        return (phase, *mesh, runtime.beside_sampling)
