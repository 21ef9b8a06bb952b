"""Score given continuations of given contexts by a model: log-probs, and whether greedy decoding
would write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from ssppo_jax.distributed.mesh import put_rows
from ssppo_jax.distributed.progress import bar
from ssppo_jax.models.decoder import Decoder, Forward, output_kernel
from ssppo_jax.models.logprobs import logits_of
from ssppo_jax.models.policy import predictors
from ssppo_jax.runtime import Runtime
from ssppo_jax.types import Array, PyTree

AT_ONCE = 8  # token positions whose logits exist at one time
SHORTEST, SHORTEST_END = 32, 4  # slots of contexts and of continuations

Scored = tuple[Float[Array, "B K T"], Bool[Array, "B K T"]]


def token_scores(
    decoder: Decoder,
    params: PyTree[Array],
    context: Int[Array, "B P"],
    length: Int[Array, "B"],
    continuation: Int[Array, "B K T"],
) -> Scored:
    """Return each token's log-prob (float32), and whether it is the likeliest token."""
    out = decoder.apply({"params": params}, context, length, continuation)
    states = predictors(cast(Forward, out), length)  # [B,K,T,D]
    kernel = output_kernel(params, decoder.arch)

    def at(position: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden, token = position  # [B,K,D], [B,K]
        logits = logits_of(hidden, kernel, decoder.arch.final_softcap).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
        total = jax.scipy.special.logsumexp(logits, axis=-1)
        return chosen - total, token == logits.argmax(-1)

    ahead = jnp.moveaxis(states, 2, 0), jnp.moveaxis(jnp.asarray(continuation), 2, 0)
    logp, greedy = jax.lax.map(at, ahead, batch_size=AT_ONCE)
    return jnp.moveaxis(logp, 0, 2), jnp.moveaxis(greedy, 0, 2)


class Likelihood:
    """Score continuations, contexts of like length together, each context read once.

    Args:
        runtime: of the model.
        params: its parameters.
        batch_size: contexts at a time, rounded up to what the mesh divides.
    """

    def __init__(self, runtime: Runtime, params: PyTree, *, batch_size: int):
        self.runtime, self.params = runtime, params
        ways = runtime.mesh.shape["data"] * runtime.mesh.shape["fsdp"]
        self.batch_size = -(-batch_size // ways) * ways
        decoder = runtime.decoder.clone(remat="none")
        self._scores = jax.jit(lambda *arrays: token_scores(decoder, *arrays))

    def score(
        self,
        contexts: Sequence[list[int]],
        continuations: Sequence[list[list[int]]],
        done: Callable[[int, list[tuple[float, bool]]], None],
        *,
        what: str,
    ) -> None:
        """Call done(i, [(log-prob, greedy), ...]) for each context as its batch ends.

        Contexts must not be empty; a continuation may be empty (log-prob 0).
        """
        shapes: dict[tuple[int, int, int], list[int]] = {}
        for i, (context, ends) in enumerate(zip(contexts, continuations, strict=True)):
            p, t = _slots(len(context), SHORTEST), _slots(max(map(len, ends)), SHORTEST_END)
            shapes.setdefault((p, len(ends), t), []).append(i)
        with bar(len(contexts), what=what, unit="requests") as progress:
            for shape, rows in sorted(shapes.items()):
                for start in range(0, len(rows), self.batch_size):
                    batch = rows[start : start + self.batch_size]
                    self._batch(shape, batch, contexts, continuations, done)
                    progress.update(len(batch))

    def _batch(self, shape, rows, contexts, continuations, done) -> None:
        (p, k, t), b = shape, self.batch_size
        context, length = np.zeros((b, p), np.int32), np.ones(b, np.int32)
        ends, mask = np.zeros((b, k, t), np.int32), np.zeros((b, k, t), bool)
        for r, i in enumerate(rows):
            context[r, : len(contexts[i])] = contexts[i]
            length[r] = len(contexts[i])
            for j, tokens in enumerate(continuations[i]):
                ends[r, j, : len(tokens)], mask[r, j, : len(tokens)] = tokens, True
        placed = put_rows(self.runtime.mesh, (context, length, ends))
        logp, greedy = jax.device_get(self._scores(self.params, *placed))
        total: np.ndarray = np.where(mask, logp, 0.0).astype(np.float64).sum(-1)
        whole: np.ndarray = np.all(np.where(mask, greedy, True), axis=-1)
        for r, i in enumerate(rows):
            done(i, list(zip(total[r].tolist(), whole[r].tolist(), strict=True)))


def _slots(n: int, least: int) -> int:
    """Return the slots that hold n tokens: few sizes, so that few programs are compiled."""
    slots = least
    while slots < n:
        slots *= 2
    return slots
