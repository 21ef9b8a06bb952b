"""Compare trainer and sampler on the same tokens: the gate before the first update of a rollout.

Both compute log-probs of the tokens that were sampled, by two programs that round differently.
With d = log p_trainer - log p_sampler of a token, three numbers say what kind of difference it is:

- the median of |d|: what rounding does to a usual token;
- the 99.9th percentile of |d|: what it does to unlikely tokens. One token in ten million says
  nothing, so the largest is logged and not bounded;
- the mean of exp(d), which is 1 for any two policies if the tokens are drawn from the sampler's:
  E_q[p/q] = 1. Another value says that the recorded log-probs are not those of the draw.

**Bounds.** A dtype of unit roundoff u gives relative errors within u, of rms u/sqrt(3), and errors
of different operations are independent. Of a decoder of L layers, four sources add up in squares:

- Arithmetic, in each of the two programs: every one of 2L sums into the residual stream is rounded,
  u sqrt(2L/3) in all. About 6 roundings inside a sublayer reach what it adds; those of different
  sublayers average out and count once, u sqrt(2). So r^2 = 2 u^2 (2 + 2L/3).
- Sums: a product of n terms is added up in float32, u = 2^-24, with a relative error of rms
  u sqrt(n), whatever dtype it has read. Three products, in each program: r^2 = 6 n u^2.
- Weights that the sampler rounds and the trainer does not: three products lie behind what a
  sublayer adds, and their errors average out over sublayers. They are the same for every token, so
  attention does not average over them, and they count in full: r^2 = 3 u^2.
- Keys and values that the sampler keeps in another dtype, in full for the same reason: r^2 = 2 u^2.

A relative error r of the last hidden state moves a logit by r times the spread of the logits, taken
as `SPREAD` nats. The float32 logits and their log-sum, of size `SIZE`, add their own rounding. With
s for the root of the sum, a normal d has median |d| = 0.67 s. Its tail is longer than the normal
one's, for unlikely tokens move more: 7 s bounds the percentile (normal: 3.3 s). The mean of exp(d)
is within s of 1: of n tokens it strays by s/sqrt(n), and rows are selected after sampling.

A float32 product on an accelerator rounds its inputs: to TF32 on NVIDIA GPUs, to bfloat16 on TPUs.
int8 weights have errors up to 1/254 of a channel's largest weight, whatever their own size: a
weight's relative error is larger, the smaller it is. The largest is about 4 times a channel's rms.
Weights that meet outlying features of the hidden state are smaller still, and it is there that
8 bits hurt (arXiv 2208.07339). `PEAK` stands for both.

`SPREAD`, `PEAK` and the 7 of the tail are set so that SmolLM2-135M stays below half of its bounds
(`benchmarks/rounding.py`). A model may exceed them: `train.sampler_bound` multiplies the bounds."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ssppo_jax.errors import GateError

ROUNDOFF = {"float32": 2.0**-24, "tf32": 2.0**-11, "bfloat16": 2.0**-8}
PRODUCTS = {"gpu": "tf32", "cuda": "tf32", "tpu": "bfloat16"}  # what a float32 product reads
PEAK = 9.0  # the largest weight of an output channel, in the size of those that matter most
SPREAD = 3.0  # standard deviation of the logits over the vocabulary, nats
SIZE = 32.0  # of a logit, nats


class Mismatch(NamedTuple):
    """Hold what the log-probs of the same tokens differ by, or a bound on each."""

    median: float  # of |d|
    p999: float  # the 99.9th percentile of |d|
    ratio: float  # |mean of exp(d) - 1|


def mismatch_of(difference: Float[np.ndarray, "n"]) -> Mismatch:
    """Measure d, trainer minus sampler, of n tokens; all 0 of none."""
    if not difference.size:
        return Mismatch(0.0, 0.0, 0.0)
    d = np.asarray(difference, np.float64)
    median, p999 = np.quantile(np.abs(d), (0.5, 0.999))
    return Mismatch(float(median), float(p999), float(abs(np.expm1(np.minimum(d, 20.0)).mean())))


def noise(
    layers: int,
    width: int,
    *,
    compute: str,
    weights: str,
    sampled: str,
    cache: str,
    platform: str,
    temperature: float = 1.0,
) -> float:
    """Return s, the rms of d that rounding explains, nats (see the module).

    Args:
      layers: L.
      width: n, terms of the longest products.
      compute: dtype that both compute in.
      weights: dtype of the trainer's weights.
      sampled: dtype of the sampler's weights; int8 for 8 bits.
      cache: dtype of the keys and values that the sampler keeps.
      platform: of the devices, as JAX names it.
      temperature: what divides the logits of the log-probs, and so multiplies their errors.
    """
    products = PRODUCTS.get(platform, "float32") if compute == "float32" else compute
    u = ROUNDOFF[products]
    squares = 2 * u**2 * (2 + 2 * layers / 3) + 6 * width * ROUNDOFF["float32"] ** 2
    if sampled == "int8":
        squares += 3 * (PEAK / 254) ** 2
    elif sampled not in (weights, compute):
        squares += 3 * ROUNDOFF[sampled] ** 2
    if cache != compute:
        squares += 2 * ROUNDOFF[cache] ** 2
    return (SPREAD * math.sqrt(squares) + SIZE * ROUNDOFF["float32"]) / temperature


def bounds_of(noise: float) -> Mismatch:
    """Return what the three numbers may be where rounding makes d of this rms."""
    return Mismatch(0.67 * noise, 7.0 * noise, noise)


def check(found: Mismatch, bounds: Mismatch, dtypes: str) -> None:
    """Compare.

    Raises:
      GateError: a number is above its bound.
    """
    names = ("median |d|", "99.9th percentile of |d|", "|mean of exp(d) - 1|")
    above = [
        f"{name} is {value:.3g}, allowed {bound:.3g}"
        for name, value, bound in zip(names, found, bounds, strict=True)
        if not value <= bound
    ]
    if above:
        raise GateError(
            "sampler and trainer disagree on the same tokens by more than rounding explains"
            f" ({dtypes}). Of d = trainer - sampler log-prob: {'; '.join(above)}. If the loss"
            " grew very large before, training has diverged: lower optimizer.learning_rate. Else"
            " this is a bug in the model code, a damaged weight, or a model that rounds worse than"
            " others: train.sampler_bound=2 doubles what is allowed, and 0 allows anything"
        )
