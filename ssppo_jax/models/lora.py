"""Low-rank adapters (LoRA, arXiv 2106.09685): y = x W + (alpha / rank) (x A) B beside chosen
projections.

A and B are leaves `lora_a` and `lora_b` beside a projection's `kernel`, so the tree of a model with
adapters is the model's own with a few leaves more. `split` parts them, `join` puts them together;
both hold references, not copies."""

from __future__ import annotations

import dataclasses
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from ssppo_jax.types import Array, PyTree

A, B = "lora_a", "lora_b"
TARGETS = r"attn/[qkvo]|mlp/(gate|up|down)"  # every projection


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which projections have adapters, and of what size. Hashable, so jit-static."""

    rank: int
    alpha: float  # the adapter's share is multiplied by alpha / rank
    dropout: float = 0.0  # of the adapter's input, while training
    targets: str = TARGETS  # regular expression, found in paths such as layers/attn/q

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def covers(self, path: str) -> bool:
        return re.search(self.targets, path) is not None


def add_adapter(
    module: nn.Module,
    y: Float[Array, "B S ..."],  # [B,S,*outside], the projection without adapter
    x: Float[Array, "B S ..."],  # [B,S,*inside]
    outside: tuple[int, ...],
    lora: Lora | None,
) -> Float[Array, "B S ..."]:
    """Return y + scale * (x A) B where the module is a target, else y.

    A starts as PEFT's and B at 0, so the adapter changes nothing at first. With a `dropout` random
    key, `lora.dropout` of x is dropped on the adapter's way."""
    if lora is None or not lora.covers("/".join(module.path)):
        return y
    inside = x.shape[2:]
    a = module.param(A, _uniform, (*inside, lora.rank), module.param_dtype).astype(module.dtype)
    b = module.param(
        B, nn.initializers.zeros_init(), (lora.rank, *outside), module.param_dtype
    ).astype(module.dtype)
    if lora.dropout and module.has_rng("dropout"):
        x = nn.Dropout(lora.dropout, deterministic=False)(x)
    low = jnp.dot(x.reshape(-1, math.prod(inside)), a.reshape(-1, lora.rank))
    high = jnp.dot(low, b.reshape(lora.rank, -1)) * lora.scale
    return y + high.reshape(y.shape)


def split(params: PyTree) -> tuple[PyTree, PyTree]:
    """Return (the model's own leaves, the adapters'), as two nested dicts."""
    own: dict = {}
    adapters: dict = {}
    for key, value in params.items():
        if isinstance(value, dict):
            for tree, part in zip((own, adapters), split(value), strict=True):
                if part:
                    tree[key] = part
        else:
            (adapters if key in (A, B) else own)[key] = value
    return own, adapters


def join(own: PyTree | None, adapters: PyTree) -> PyTree:
    """Return one tree of both: `split`'s inverse. Without `own` it is the second tree."""
    if own is None:
        return adapters
    both = dict(own)
    for key, value in adapters.items():
        both[key] = join(both[key], value) if key in both and isinstance(value, dict) else value
    return both


def merged(params: PyTree, scale: float) -> PyTree:
    """Add the adapters to the kernels, W + scale A B, in float32, rounded to the kernel's dtype."""
    if not isinstance(params, dict):
        return params
    out = {key: merged(value, scale) for key, value in params.items() if key not in (A, B)}
    if A in params:
        kernel, a, b = (jnp.asarray(params[key], jnp.float32) for key in ("kernel", A, B))
        n, rank = kernel.shape[0], a.shape[-1]
        delta = jnp.einsum("nir,nro->nio", a.reshape(n, -1, rank), b.reshape(n, rank, -1))
        whole = kernel + scale * delta.reshape(kernel.shape)
        out["kernel"] = whole.astype(params["kernel"].dtype)
    return out


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype) -> Array:
    """Draw from U(-1/sqrt(inside), 1/sqrt(inside)): PEFT's Kaiming uniform with a = sqrt(5)."""
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)
