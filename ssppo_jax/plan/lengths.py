"""Count the padding that a config computes on responses of unequal length, and what is left of a
training step's time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssppo_jax.data import cut_of
from ssppo_jax.data.lengths import MEAN, TAIL, long_tailed
from ssppo_jax.distributed.mesh import ways_of
from ssppo_jax.plan.compile import Plan
from ssppo_jax.plan.steps import micro_batches, rows_per_prompt
from ssppo_jax.runs.throughput import slots_of
from ssppo_jax.runtime import Runtime

SEED = 0
STEPS = 16  # optimizer steps whose rows are drawn


class Uneven(NamedTuple):
    """Hold shares of computed tokens that are padding, and a training step's size and time."""

    scored: float  # padding share
    trained: float
    tokens: float  # real ones of a training step
    slots: float  # computed ones
    seconds: float | None  # of a training step at the roofline; None: it was not compiled

    def __str__(self) -> str:
        said = (
            f"lengths (log-normal, mean {MEAN}, 99th percentile {TAIL}, seed {SEED}): padding"
            f" {self.scored:.0%} of the tokens scored, {self.trained:.0%} of those trained on;"
            f" a step computes {self.slots:,.0f} tokens for {self.tokens:,.0f} real ones"
        )
        if self.seconds is None:
            return said
        rate = self.tokens / self.seconds
        return said + f", {1e3 * self.seconds:.1f} ms at the roofline, {rate:,.0f} real tokens/s"


def uneven_of(runtime: Runtime, plans: Sequence[Plan]) -> Uneven:
    """Return what the config's cut makes of long-tailed lengths; prompts are up to twice as long as
    the shortest.

    The compiled step has whole rows. Its time is scaled by the tokens computed, which is too long
    where attention takes a part of it that grows with the square of a row.
    """
    c, k = runtime.config, rows_per_prompt(runtime)
    cut = cut_of(c, ways_of(runtime.mesh))
    count, longest = STEPS * c.train.batch_size, c.data.max_prompt_length
    drawn = np.random.default_rng(SEED).integers(-(-longest // 2), longest + 1, count)
    own = long_tailed((count, k), longest=c.sampling.max_new_tokens, seed=SEED)
    rows = np.arange(count)
    steps = np.split(rows, STEPS)
    trained = sum(slots_of(cut, drawn, own, step) for step in steps)
    scored = trained
    if cut.by_length:  # all rows of a rollout are cut together
        scored = slots_of(cut, drawn, own, rows)
    tokens = float(drawn.sum() + own.sum())
    found = {plan.phase: plan for plan in plans}
    seconds = None
    if "train" in found and found["train"].fits:
        parts, size = micro_batches(runtime)
        whole = parts * size * (c.data.prompt_buckets[-1] + k * c.sampling.max_new_tokens)
        seconds = found["train"].slowest * trained / STEPS / whole
    return Uneven(
        1 - tokens / scored, 1 - tokens / trained, tokens / STEPS, trained / STEPS, seconds
    )
