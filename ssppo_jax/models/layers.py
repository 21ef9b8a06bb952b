"""The pieces of a decoder block: RMSNorm, rotary positions, projections, gated MLP."""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from ssppo_jax.models.arch import LinearScaling, Llama3Scaling
from ssppo_jax.models.int8 import SCALE
from ssppo_jax.models.lora import Lora, add_adapter
from ssppo_jax.models.masks import Table
from ssppo_jax.types import Array


class RMSNorm(nn.Module):
    """RMSNorm: x / rms(x) * scale, the quotient in float32 whatever the compute dtype.

    Llama rounds the quotient to the compute dtype and multiplies by the scale; Gemma (`plus_one`)
    multiplies by 1 + scale in float32 and then rounds."""

    eps: float
    dtype: DTypeLike
    param_dtype: DTypeLike
    plus_one: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*A D"]) -> Float[Array, "*A D"]:
        start = nn.initializers.zeros_init() if self.plus_one else nn.initializers.ones_init()
        scale = self.param("scale", start, (x.shape[-1],), self.param_dtype).reshape(
            (1,) * (x.ndim - 1) + (-1,)
        )
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        if self.plus_one:
            return (x32 * (1.0 + scale.astype(jnp.float32))).astype(self.dtype)
        return x32.astype(self.dtype) * scale.astype(self.dtype)


def soft_cap(x: Array, cap: float | None) -> Array:
    """Return cap * tanh(x / cap); x itself without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def rotary_table(
    positions: Int[Array, "B S"],
    head_dim: int,
    theta: float,
    scaling: Llama3Scaling | LinearScaling | None = None,
) -> Table:
    """Return cos and sin of position * inverse frequency, halves repeated.

    This is the rotate-half convention of Hugging Face."""
    half = jnp.arange(0, head_dim, 2, dtype=jnp.float32)
    frequency: Array = theta ** (-half / head_dim)
    if isinstance(scaling, Llama3Scaling):
        frequency = llama3_frequency(frequency, scaling)
    elif scaling is not None:
        frequency = frequency / scaling.factor
    angle = positions.astype(jnp.float32)[..., None] * frequency[None, None, :]
    angle = jnp.concatenate([angle, angle], axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def llama3_frequency(frequency: Array, s: Llama3Scaling) -> Array:
    """Return frequencies, of long wavelengths divided by `factor`: Llama 3.1's.

    Between the cut-offs is a smooth ramp."""
    turns = s.original_max_positions * frequency / (2 * jnp.pi)  # over the original context
    width = s.high_freq_factor - s.low_freq_factor
    ramp = jnp.clip((turns - s.low_freq_factor) / width, 0.0, 1.0)
    return frequency * (ramp + (1.0 - ramp) / s.factor)


def rotate(x: Float[Array, "B S heads E"], table: Table) -> Float[Array, "B S heads E"]:
    """Apply the rotary position embedding, rotate-half form, in float32."""
    cos, sin = (part[:, :, None, :] for part in table)
    x32 = x.astype(jnp.float32)
    first, second = jnp.split(x32, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x32 * cos + turned * sin).astype(x.dtype)


class Heads(nn.Module):
    """A projection to heads whose kernel keeps its head axis, so that it can be sharded."""

    heads: int
    head_dim: int
    use_bias: bool
    dtype: DTypeLike
    param_dtype: DTypeLike
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S heads E"]:
        shape = (x.shape[-1], self.heads, self.head_dim)
        y = _product(self, x, shape, inside=1)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), shape[1:], self.param_dtype)
            y = y + bias.astype(self.dtype)[None, None]
        return add_adapter(self, y, x, shape[1:], self.lora)


class Merge(nn.Module):
    """The inverse projection of `Heads`."""

    features: int
    dtype: DTypeLike
    param_dtype: DTypeLike
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B S H E"]) -> Float[Array, "B S D"]:
        shape = (*x.shape[-2:], self.features)
        y = _product(self, x, shape, inside=2)
        return add_adapter(self, y, x, shape[-1:], self.lora)


class Mlp(nn.Module):
    """down(act(gate(x)) * up(x)): act is SiLU, or with `gelu` GELU in its tanh form."""

    mlp_dim: int
    dtype: DTypeLike
    param_dtype: DTypeLike
    gelu: bool = False
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        kinds = (self.dtype, self.param_dtype, self.lora)
        act = functools.partial(nn.gelu, approximate=True) if self.gelu else nn.silu
        gate = act(Dense(self.mlp_dim, *kinds, name="gate")(x))
        up = Dense(self.mlp_dim, *kinds, name="up")(x)
        return Dense(x.shape[-1], *kinds, name="down")(gate * up)


class Dense(nn.Module):
    """A projection without bias."""

    features: int
    dtype: DTypeLike
    param_dtype: DTypeLike
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S features"]:
        shape = (x.shape[-1], self.features)
        y = _product(self, x, shape, inside=1)
        return add_adapter(self, y, x, shape[1:], self.lora)


def matmul(
    x: Float[Array, "*A D"], kernel: Float[Array, "D ..."], accumulate: DTypeLike | None = None
) -> Float[Array, "..."]:
    """Multiply x by a kernel as one two-dimensional product.

    Left in three dimensions, XLA's CPU backend transposes activations for the kernel's gradient,
    which slows the backward pass."""
    out = kernel.shape[1:]
    y = jnp.dot(
        x.reshape(-1, x.shape[-1]),
        kernel.reshape(kernel.shape[0], -1),
        preferred_element_type=accumulate,
    )
    return y.reshape(*x.shape[:-1], *out)


def _product(module: nn.Module, x: Array, shape: tuple[int, ...], *, inside: int) -> Array:
    """Multiply x [B,S,*inside] by the module's kernel of this shape, [*inside,*outside].

    A kernel in 8 bits comes with a scale [*outside], which multiplies the product: the compiler
    reads 8 bits and widens them on their way into the product."""
    depth = math.prod(shape[:inside])
    init = nn.initializers.normal(stddev=depth**-0.5)
    kernel = module.param("kernel", init, shape, module.param_dtype).astype(module.dtype)
    x, kernel = x.reshape(*x.shape[:2], -1), kernel.reshape(depth, *shape[inside:])
    if not module.has_variable("params", SCALE):
        return matmul(x, kernel)
    scale: Array = module.get_variable("params", SCALE)[None, None]
    return (matmul(x, kernel, accumulate=jnp.float32) * scale).astype(module.dtype)
