"""Soft gates on the importance ratio r = pi/pi_old of a token.

`gate(u, temperature) -> Gated(log_f, slope)`, u = log r; temperatures are > 0. The losses use f in
a product (SSPO: a mean of log f) or as it is (SAPO). `slope` is what the effective update ratio
(EUR) averages: the derivative of the gate in the variable it is built in. That is f'(r) for gates
of the ratio and d log f/du for gates of the log-ratio (df/du for `arctan_log_affine`). It is 1 at
r = 1 for every gate and never above 1.

Every gate but `sigmoid` passes through f(1) = f'(1) = 1; `sigmoid` has f(1) = 2/temperature. Gates
of the ratio are from arXiv 2602.19345 (SAPO: 2511.20347). Their use inside SSPO's geometric mean,
and the gates of the log-ratio, are a reconstruction: no text of SSPO (arXiv 2602.19327) that
defines them was read.

Any u is safe. Ratios are taken at u in [-20, 20], where gates of the ratio are flat. The float32
value of f - 1, which rounding can push to -1 near r = 0 when the temperature is small, is kept
above it."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ssppo_jax.types import Array

# e^20 = 4.9e8: its square is still far from overflow in float32, so gradient norms are finite
MAX_LOG_RATIO = 20.0
# f of a positive gate is kept above this; exact arithmetic stays above it for temperatures > 0.004
MIN_GATE = 1e-6


class Gated(NamedTuple):
    """A gate's value and slope at every token."""

    log_f: Float[Array, "*A"]
    slope: Float[Array, "*A"]  # in [0,1]


def ratio(u: Float[Array, "*A"]) -> Float[Array, "*A"]:
    """Return e^u with u cut to [-20, 20]: finite, and with gradient 0 beyond the cut."""
    return jnp.exp(jnp.clip(u, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _log1p(excess: Array) -> Array:
    """Return log f from f - 1."""
    return jnp.log1p(jnp.maximum(excess, MIN_GATE - 1.0))


def _scaled(u: Array, temperature: Array) -> Array:
    """Return x = temperature * (r - 1); expm1 keeps the digits near r = 1."""
    return temperature * jnp.expm1(jnp.clip(u, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def sigmoid(u: Float[Array, "*A"], temperature: Float[Array, "*A"]) -> Gated:
    """Apply f = 4/temperature * sigmoid(temperature (r - 1)).

    SAPO's gate, and SSPO's first version as published. f(1) = 2/temperature and d log f/du =
    temperature/2 there: in a geometric mean the two cancel at r = 1 only."""
    x = _scaled(u, temperature)
    slope = 4.0 * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)
    return Gated(jnp.log(4.0 / temperature) + jax.nn.log_sigmoid(x), slope)


def sigmoid_norm(u: Float[Array, "*A"], temperature: Float[Array, "*A"]) -> Gated:
    """Apply f = 1 + 4/temperature * (sigmoid(temperature (r - 1)) - 1/2), which is 1 at r = 1."""
    x = _scaled(u, temperature)
    slope = 4.0 * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)
    return Gated(_log1p(2.0 / temperature * jnp.tanh(0.5 * x)), slope)


def arctan(u: Float[Array, "*A"], temperature: Float[Array, "*A"]) -> Gated:
    """Apply f = 1 + arctan(temperature (r - 1))/temperature: a tail of slope falling as r^-2."""
    x = _scaled(u, temperature)
    return Gated(_log1p(jnp.arctan(x) / temperature), 1.0 / (1.0 + x * x))


def erf(u: Float[Array, "*A"], temperature: Float[Array, "*A"]) -> Gated:
    """Apply f = 1 + sqrt(pi/2)/temperature * erf(temperature (r - 1)/sqrt(2)): a Gaussian slope."""
    x = _scaled(u, temperature)
    excess = math.sqrt(math.pi / 2) / temperature * jax.lax.erf(x / math.sqrt(2))
    return Gated(_log1p(excess), jnp.exp(-0.5 * x * x))


def softsign(u: Float[Array, "*A"], temperature: Float[Array, "*A"]) -> Gated:
    """Apply f = 1 + (r - 1)/sqrt(1 + temperature^2 (r - 1)^2): a tail of slope falling as r^-3."""
    x = _scaled(u, temperature)
    inverse = jax.lax.rsqrt(1.0 + x * x)
    return Gated(_log1p(x * inverse / temperature), inverse * inverse * inverse)


def arctan_log(u: Float[Array, "*A"], temperature: Float[Array, "*A"]) -> Gated:
    """Apply log f = arctan(temperature * u)/temperature: symmetric in u.

    |log f| < pi/(2 temperature) for any input. d log f/du = 1/(1 + temperature^2 u^2): a smooth
    form of GMPO's clip with epsilon = pi/(2 temperature)."""
    x = temperature * u
    return Gated(jnp.arctan(x) / temperature, 1.0 / (1.0 + x * x))


def arctan_log_affine(u: Float[Array, "*A"], temperature: Float[Array, "*A"]) -> Gated:
    """Apply f = 1 + arctan(temperature * u)/temperature: another reading of SSPO's words.

    Below temperature pi/2 it would turn negative; `sspo` and `sapo` refuse that."""
    x = temperature * u
    return Gated(_log1p(jnp.arctan(x) / temperature), 1.0 / (1.0 + x * x))


def log_clip(u: Float[Array, "*A"], temperature: Float[Array, "*A"]) -> Gated:
    """Apply log f = clip(u, -e, e), e = pi/(2 temperature): the hard limit of `arctan_log`.

    Two-sided whatever the advantage. GMPO's epsilon 0.4 is temperature 3.927."""
    bound = 0.5 * math.pi / temperature
    return Gated(jnp.clip(u, -bound, bound), (jnp.abs(u) <= bound).astype(u.dtype))


def identity(u: Float[Array, "*A"], temperature: Float[Array, "*A"]) -> Gated:
    """Apply f = r: no gate. In the geometric mean it is GSPO's ratio without clipping."""
    return Gated(u, jnp.ones_like(u))


RATIO_GATES = {
    function.__name__: function
    for function in (
        arctan_log,
        sigmoid,
        sigmoid_norm,
        arctan,
        erf,
        softsign,
        log_clip,
        identity,
        arctan_log_affine,
    )
}
