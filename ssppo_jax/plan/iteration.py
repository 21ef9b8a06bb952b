"""Add the phases of a plan up to an iteration and a run: seconds, chip-hours and cost.

Compiled steps stand at their roofline, so that a time is a lower bound. What no compiled step tells
is assumed, and `Iteration.notes` names each assumption.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from ssppo_jax.data import GIVEN
from ssppo_jax.distributed.mesh import shard_bytes
from ssppo_jax.losses import ROWS
from ssppo_jax.models import flops
from ssppo_jax.plan.compile import Plan
from ssppo_jax.plan.steps import micro_batches, rows_per_prompt, samples_per_prompt
from ssppo_jax.rollout.similarity import WITHOUT_ENCODER
from ssppo_jax.runs.throughput import Chip
from ssppo_jax.runtime import Runtime

# ---- assumed, not measured -----------------------------------------------------------------------

JUDGE_SHARE = 0.3  # of the chips' peak that an oracle on the mesh reaches
ENCODER_SHARE = 0.05  # of one chip's peak a host: small, float32, not sharded
DISK = 2e9  # bytes per second between one host and the run's folder
PORTION = 20_000  # prompts of an iteration of the S-SPPO paper


class Reader(NamedTuple):
    """Hold the shape of a model that reads whole texts."""

    layers: int
    width: int
    mlp: int
    positions: int = 0  # that queries and keys are also multiplied with: DeBERTa's

    def work(self, texts: float, length: float) -> float:
        """Count the operations of reading texts of a length."""
        token = 2.0 * (4 * self.width**2 + 2 * self.width * self.mlp)
        token += 4.0 * (length + self.positions) * self.width
        return texts * length * self.layers * token


PAIRRM = Reader(24, 1024, 4096, positions=512)  # DeBERTa-v3-large
MINILM = Reader(6, 384, 1536)  # all-MiniLM-L6-v2


@dataclasses.dataclass(frozen=True)
class Iteration:
    """Hold the time of an iteration by phase, and of the whole run."""

    prompts: int
    seconds: dict[str, float]  # of one iteration, by phase
    evaluations: float  # seconds of all evaluations of the run
    iterations: int
    chips: int
    notes: tuple[str, ...]  # what is assumed

    @property
    def total(self) -> float:
        """Return the seconds of one iteration."""
        return sum(self.seconds.values())

    @property
    def hours(self) -> float:
        """Return the hours of the run."""
        return (self.iterations * self.total + self.evaluations) / 3600

    @property
    def chip_hours(self) -> float:
        return self.hours * self.chips


def iteration_of(
    runtime: Runtime,
    plans: Sequence[Plan],
    chip: Chip,
    *,
    hosts: int,
    prompts: int = 0,
) -> Iteration | None:
    """Return an iteration of the config, or None where a phase is missing or does not fit.

    Args:
      runtime: the config on the described devices.
      plans: of all phases.
      chip: one of the devices.
      hosts: machines, each with a disk of its own.
      prompts: of one iteration; 0: train.prompts_per_iteration, or the paper's 20,000 where that
        is 0.
    """
    c, found = runtime.config, {plan.phase: plan for plan in plans}
    needed = ("generate", "score", "train")
    if not found.keys() >= set(needed) or not all(plan.fits for plan in plans):
        return None
    notes = ["responses of full length"]
    count = prompts or c.train.prompts_per_iteration
    if not count:
        count = PORTION
        notes.append(f"{PORTION:,} prompts (the paper's; --prompts=N for yours)")
    chips = runtime.mesh.size
    alone = found["generate"].slowest * math.ceil(count / runtime.slots(samples_per_prompt(c)))
    sampled = alone
    if ROWS.get(c.loss.name) == "opponent":
        sampled *= 3
        notes.append("the opponent's mixture samples at half the policy's pace")
    rows = micro_batches(runtime)[1]
    scored = math.ceil(count / rows) * found["score"].slowest
    steps = c.train.epochs * math.ceil(count / c.train.batch_size)
    seconds = {
        "relay": found["relay"].slowest if "relay" in found else 0.0,
        "generate": sampled,
        "judge": judging(runtime, count, notes) / (chips * chip.flops * JUDGE_SHARE),
        "embed": _embedding(c, count) / (hosts * chip.flops * ENCODER_SHARE),
        "score": scored * (1 if c.train.reference_storage == "off" else 2),
        "train": steps * found["train"].slowest,
    }
    given = GIVEN.get(c.data.source.name, False)
    if given:
        seconds |= dict.fromkeys(("relay", "generate", "judge", "embed"), 0.0)
        notes.append("responses are given: nothing is sampled or judged")
    saved = _saved(runtime, steps) / (hosts * DISK)
    beside = c.checkpoint.async_save
    seconds["checkpoint"] = max(0.0, saved - sum(seconds.values())) if beside else saved
    if seconds["embed"]:
        notes.append(f"the encoder as MiniLM at {ENCODER_SHARE:.0%} of one chip's peak a host")
    disk = f"{DISK / 1e9:g} GB/s a host for checkpoints"
    disk += f" ({saved / 60:.2f} min, in the background)" if beside else ""
    if c.train.reference_storage == "disk":
        each = 2.0 * runtime.arch.num_layers * flops.layer_parameters(runtime.arch)
        seconds["initial policy"] = each / (hosts * DISK)
        disk += ", and for reading the initial policy"
    notes.append(disk)
    each = 0.0 if given else alone / (count * samples_per_prompt(c))  # evaluations have no opponent
    evaluations = each * c.data.heldout * _evaluated(c)
    return Iteration(count, seconds, evaluations, c.train.iterations, chips, tuple(notes))


def _evaluated(config: ConfigDict) -> int:
    """Return the responses to each held-out prompt, over the whole run."""
    ends = 2 * config.eval.final_num_samples
    between = (config.train.iterations - 1) // config.eval.every if config.eval.every else 0
    return ends + between * config.eval.num_samples


def judging(runtime: Runtime, prompts: int, notes: list[str]) -> float:
    """Count the operations of an oracle that is a model on the mesh; others run beside sampling."""
    c, k = runtime.config, rows_per_prompt(runtime)
    k = max(k, c.sampling.num_samples)
    length, own = c.data.max_prompt_length, c.sampling.max_new_tokens
    names = [c.oracle.name]
    if c.oracle.name == "combine":
        names = [member["oracle"] for member in json.loads(c.oracle.members)]
    work = 0.0
    for name in names:
        if name == "pairrm":
            work += PAIRRM.work(prompts * k * (k - 1), length + 2 * own)
            notes.append(f"PairRM at {JUDGE_SHARE:.0%} of the peak, both orders of every pair")
        elif name == "reward_model":
            tokens = float(prompts * k * (length + own))
            work += flops.dense(runtime.arch, tokens)
            notes.append(f"a reward model of the policy's size at {JUDGE_SHARE:.0%} of the peak")
        else:
            notes.append(f"oracle {name} judges beside the sampling and is never waited for")
    return work


def _embedding(config: ConfigDict, prompts: int) -> float:
    """Count the operations of embedding every response for the gate."""
    s = config.similarity
    if ROWS.get(config.loss.name, "pair") != "pair" or s.name in WITHOUT_ENCODER:
        return 0.0
    length = min(s.max_length, config.sampling.max_new_tokens)
    return MINILM.work(prompts * config.sampling.num_samples, length)


def _saved(runtime: Runtime, steps: int) -> float:
    """Return the bytes of the checkpoints of an iteration, of all hosts together."""
    c = runtime.config.checkpoint
    inside = (steps - 1) // c.every_steps if c.every_steps else 0
    count = inside + (1 / c.every if c.every else 0)
    state = runtime.abstract_state
    return count * shard_bytes((state.params, state.opt_state)) * runtime.mesh.size
