"""Masks of the keys a token may see: the past only, no padding, in some layers only a window."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from ssppo_jax.models.arch import Arch
from ssppo_jax.models.packing import Packing
from ssppo_jax.types import Array

UNBOUNDED = 2**30  # a window that never binds
Table = tuple[Float[Array, "#B S E"], Float[Array, "#B S E"]]  # rotary cos and sin


class Scope(NamedTuple):
    """What every layer is told about the tokens at hand."""

    table: Table
    local: Table | None  # of layers with a window, where those have a RoPE base of their own
    prompt_length: Int[Array, "B"]
    filled: Int[Array, "B"]  # tokens of each row's completions in the cache
    head: Int[Array, ""] | None  # the slot of the cache that is written next; None without one
    packing: Packing | None  # where the tokens lie outside attention; None: as in attention


class Kind(NamedTuple):
    """What distinguishes one layer from another."""

    window: Int[Array, "*N"]  # how far it looks back, itself included; UNBOUNDED: everything
    local: Bool[Array, "*N"]  # whether it rotates by `Scope.local`


def layer_kinds(arch: Arch, slots: int) -> Kind | None:
    """Return the kinds of N layers; None if no window binds in `slots` and all rotate alike."""
    window = arch.sliding_window
    if window is None or (window >= slots and arch.local_rope_theta is None):
        return None
    local = np.isin(np.arange(arch.num_layers), arch.sliding_layers)
    windows = np.where(local, window, UNBOUNDED).astype(np.int32)
    return Kind(jnp.asarray(windows), jnp.asarray(local))


@dataclasses.dataclass(frozen=True)
class Masks:
    """Masks of the tokens at hand, one for each block of keys.

    Prompt slot j is at position j; completion token t at prompt_length + filled + t. The cache is a
    ring."""

    scope: Scope
    window: Int[Array, ""] | None  # None where no layer has one that could bind

    def prompt(self, p: int) -> Bool[Array, "B 1 {p} {p}"]:
        return self._causal(p) & self._filled(p)

    def of_prompt(self, t: int, p: int) -> Bool[Array, "B 1 T {p}"]:  # T is 1 or t
        own = (self.scope.prompt_length + self.scope.filled)[:, None] + jnp.arange(t)[None, :]
        return self._filled(p) & self._near(own, jnp.arange(p)[None, :])

    def of_past(self, t: int, s: int) -> Bool[Array, "B 1 T {s}"]:  # T is 1 or t
        if self.scope.head is None:
            raise ValueError("without a cache there is no past to see")
        age = (self.scope.head - 1 - jnp.arange(s)) % s  # 0 for the newest
        filled = self.scope.filled[:, None]
        # The token's number in the completion; below 0 for what another row's prompt left.
        token = filled - 1 - age[None, :]
        return (token >= 0)[:, None, None, :] & self._near(filled + jnp.arange(t)[None, :], token)

    def own(self, t: int) -> Bool[Array, "1 1 {t} {t}"]:
        return self._causal(t)

    def _causal(self, size: int) -> Bool[Array, "1 1 {size} {size}"]:
        at = jnp.arange(size)[None, :]
        return jnp.tril(jnp.ones((size, size), bool))[None, None] & self._near(at, at)

    def _filled(self, p: int) -> Bool[Array, "B 1 1 {p}"]:
        return (jnp.arange(p)[None, :] < self.scope.prompt_length[:, None])[:, None, None, :]

    def _near(
        self, query: Int[Array, "B T"], key: Int[Array, "#B S"]
    ) -> Bool[Array, "B 1 T S"] | bool:
        """Say which keys' positions are within the window that ends at the query's."""
        if self.window is None:
            return True
        return (query[:, :, None] - key[:, None, :] < self.window)[:, None]
