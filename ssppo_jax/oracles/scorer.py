"""One number for each of many token rows, from a model on the run's mesh."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from ssppo_jax.data.buckets import buckets, padded
from ssppo_jax.distributed.mesh import batch_ways, make_mesh, put_rows
from ssppo_jax.errors import GateError
from ssppo_jax.types import PyTree

Score = Callable  # (params, tokens [R,S], length [R]) -> [R] float32


class Scorer:
    """Score rows of like length together, split over the batch axes of the mesh.

    Args:
        score: the model as a function.
        load: its parameters on a mesh; called when the first rows come.
        batch_size: rows at a time, rounded up to what the mesh divides.
        longest: tokens of the longest row.
        name: of the model, for errors.

    Raises:
        GateError: a score is not finite; rows never mix, so the model itself is at fault.
    """

    def __init__(
        self,
        score: Score,
        load: Callable[[Mesh], PyTree],
        *,
        batch_size: int,
        longest: int,
        name: str,
    ):
        self.name = name
        self.score, self.load = jax.jit(score), load
        self.batch_size, self.longest = batch_size, longest
        self.mesh: Mesh | None = None
        self.params: PyTree | None = None

    def place(self, mesh: Mesh) -> None:
        """Score on this mesh; without one, on one device."""
        self.mesh, self.params = mesh, None

    def __call__(self, ids: list[list[int]]) -> np.ndarray:  # [R] float32
        mesh = self.mesh or make_mesh((1, 1, 1), devices=jax.devices()[:1])
        if self.params is None:
            self.mesh, self.params = mesh, self.load(mesh)
        ways = batch_ways(mesh.axis_sizes)
        size = -(-self.batch_size // ways) * ways
        out, pending = np.zeros(len(ids), np.float32), []
        for rows, slots in buckets([len(i) for i in ids], self.longest, size):
            batch = padded([ids[r] for r in rows], slots, size, few=False)
            pending.append((rows, self.score(self.params, *put_rows(mesh, batch))))
        for rows, scores in pending:
            out[rows] = jax.device_get(scores)[: len(rows)]
        bad = ~np.isfinite(out)
        if bad.any():
            raise GateError(
                f"{self.name} gives {bad.sum()} of {len(out)} texts a score that is not finite:"
                " its weights are damaged, or they overflow; load another copy, or another dtype"
            )
        return out
