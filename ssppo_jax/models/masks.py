"""Which keys a token may see: the past only, no padding, and in some layers nothing beyond a
sliding window."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ssppo_jax.models.arch import Arch
from ssppo_jax.types import Array

UNBOUNDED = 2**30  # a window that never binds


class Scope(NamedTuple):
    """What every layer is told about the tokens at hand."""

    table: tuple[Array, Array]  # rotary cos and sin
    local: (
        tuple[Array, Array] | None
    )  # of layers with a window, where those have a RoPE base of their own
    prompt_length: Array  # [B] int32
    filled: Array  # [B] int32, tokens of each row's completions in the cache
    head: Array | None  # [] int32, the slot of the cache that is written next; None without one


class Kind(NamedTuple):
    """What distinguishes one layer from another."""

    window: Array  # [] int32, how far it looks back, itself included; UNBOUNDED: everything
    local: Array  # [] bool, whether it rotates by `Scope.local`


def layer_kinds(arch: Arch, slots: int) -> Kind | None:
    """[N] of each layer; None where `slots` positions are within every window and all layers rotate
    alike."""
    if not arch.sliding_layers or (arch.sliding_window >= slots and arch.local_rope_theta is None):
        return None
    local = np.isin(np.arange(arch.num_layers), arch.sliding_layers)
    window = np.where(local, arch.sliding_window, UNBOUNDED).astype(np.int32)
    return Kind(jnp.asarray(window), jnp.asarray(local))


@dataclasses.dataclass(frozen=True)
class Masks:
    """Which keys the tokens at hand may see, block by block: the past only, no padding, and nothing
    beyond the window.

    Prompt slot j is at position j; completion token t at prompt_length + filled + t. The cache is a
    ring."""

    scope: Scope
    window: Array | None  # [] int32; None where no layer has one that could bind

    def prompt(self, p: int) -> Array:  # [B,1,p,p]
        return self._causal(p) & self._filled(p)

    def of_prompt(self, t: int, p: int) -> Array:  # [B,1,1 or t,p]
        own = (self.scope.prompt_length + self.scope.filled)[:, None] + jnp.arange(t)[None, :]
        return self._filled(p) & self._near(own, jnp.arange(p)[None, :])

    def of_past(self, t: int, s: int) -> Array:  # [B,1,1 or t,s]
        age = (self.scope.head - 1 - jnp.arange(s)) % s  # 0 for the newest
        filled = self.scope.filled[:, None]
        token = (
            filled - 1 - age[None, :]
        )  # its number in the completion; below 0 for what another row's prompt left
        return (token >= 0)[:, None, None, :] & self._near(filled + jnp.arange(t)[None, :], token)

    def own(self, t: int) -> Array:  # [1,1,t,t]
        return self._causal(t)

    def _causal(self, size: int) -> Array:  # [1,1,size,size]
        at = jnp.arange(size)[None, :]
        return jnp.tril(jnp.ones((size, size), bool))[None, None] & self._near(at, at)

    def _filled(self, p: int) -> Array:  # [B,1,1,p]
        return (jnp.arange(p)[None, :] < self.scope.prompt_length[:, None])[:, None, None, :]

    def _near(self, query: Array, key: Array) -> Array | bool:  # [b,t], [b,s] -> [b,1,t,s]
        """Whether a key's position is within the window that ends at the query's."""
        if self.window is None:
            return True
        return (query[:, :, None] - key[:, None, :] < self.window)[:, None]
