"""Make the compiled steps: score completions under given parameters, and one optimizer step.

Both receive the model as `apply` and the loss as a function, so they know neither. The reference
never enters the train step: its log-probs travel in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, Key

from ssppo_jax.distributed.mesh import abstract, put_whole, replicated
from ssppo_jax.models.lora import join
from ssppo_jax.models.packing import Packing
from ssppo_jax.models.policy import Apply
from ssppo_jax.optimizer import add, wide
from ssppo_jax.types import Array, Batch, Mean, Metrics, Min, Policy, PyTree, TrainState

Loss = Callable[[Policy, Batch], tuple[Mean, Metrics]]
Stats = Callable[[Policy, Batch], Metrics]


class Scored(NamedTuple):
    """Hold what scoring leaves for training and for the log."""

    logp: Float[Array, "B K T"]  # raw
    entropy: Float[Array, "B K T"]  # of the full next-token distribution


class Laid(NamedTuple):
    """Hold a micro-batch on the devices and the shape that the model computes it in."""

    batch: Batch  # [B,...]
    place: Int[Array, ""]  # among the micro-batches of its step
    slots: int | None = None  # completion slots that hold tokens; None: all
    packing: Packing | None = None  # of the rows so cut; None: they are computed padded

    @property
    def shape(self) -> dict[str, Any]:
        """Return what `apply` is told beside the arrays; nothing where rows are whole."""
        return {} if self.slots is None else {"slots": self.slots, "packing": self.packing}


class Sums(NamedTuple):
    """Hold what the micro-batches of a step have left so far."""

    grads: PyTree[Array]  # of the loss total, float32 at least
    metrics: Metrics


def make_score_step(apply: Apply) -> Callable[..., Scored]:
    """Make score(params, prompt, prompt_length, completion, mask) -> Scored, one forward pass.

    `slots` and `packing` go to `apply`."""

    def score(params: PyTree, prompt, prompt_length, completion, mask, **shape) -> Scored:
        fields = (prompt, prompt_length, completion, mask)
        policy, entropy = apply(params, *fields, entropy=True, **shape)
        if entropy is None:
            raise ValueError("apply(entropy=True) returned no entropy")
        return Scored(jnp.where(mask > 0, policy.logp, 0.0), jnp.where(mask > 0, entropy, 0.0))

    return score


def make_gradient(
    apply: Apply, loss: Loss, stats: Stats, *, dropout_key: Key[jax.Array, ""] | None = None
) -> Callable[..., tuple[PyTree, Metrics]]:
    """Make gradient(params, batch [B,...], at, frozen, on_policy) of the loss *total*, with
    metrics.

    `at` is the micro-batch's place in the run, which the dropout depends on."""

    def objective(params, batch: Batch, at: Array, frozen, on_policy, **shape):
        fields = (batch.prompt, batch.prompt_length, batch.completion, batch.mask)
        dropout = {}
        if dropout_key is not None:
            dropout["dropout_key"] = jax.random.fold_in(dropout_key, at)
        policy, _ = apply(join(frozen, params), *fields, **dropout, **shape)
        mean, metrics = loss(policy, own_old_logp(policy, batch, on_policy))
        return mean.total, {"loss": mean} | metrics | stats(policy, batch)

    return jax.grad(objective, has_aux=True)


def make_update(optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """Make update(state, grads, metrics, learning_rate=None) -> (state, metrics), the end of a
    step.

    The summed gradient of the loss total is divided once by the summed weight."""
    transform = optax.with_extra_args_support(optimizer).update

    def update(
        state: TrainState,
        grads: PyTree,
        metrics: Metrics,
        learning_rate: Array | None = None,  # float32; None: the optimizer's own
        squares: Mean | None = None,
    ) -> tuple[TrainState, Metrics]:
        mean = cast(Mean, metrics["loss"])
        weight = jnp.maximum(mean.weight, 1e-20)
        grads = jax.tree.map(lambda g: (wide(g) / weight).astype(g.dtype), grads)
        rate = {} if learning_rate is None else {"learning_rate": learning_rate}
        updates, opt_state = transform(grads, state.opt_state, state.params, **rate)
        params = jax.tree.map(add, state.params, updates)
        moves = jax.tree.map(lambda new, old: wide(new) - wide(old), params, state.params)
        norm, moved = _norm(grads), _norm(moves)
        if squares is not None:
            metrics["grad_variance"] = _variance(squares, norm)
        finite = jnp.isfinite(norm) & jnp.isfinite(moved) & jnp.isfinite(mean.total)
        metrics |= {
            "grad_norm": _once(norm),
            "update_norm": _once(moved),
            "update_share": _once(_nonzero(moves)),
            "finite": Min(jnp.float32(finite)),
        }
        return TrainState(params, opt_state, state.step + 1), metrics

    return update


def make_train_step(
    apply: Apply,
    loss: Loss,
    stats: Stats,
    optimizer: optax.GradientTransformation,
    *,
    dropout_key: Key[jax.Array, ""] | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Make step(state, batch, frozen=None, learning_rate=None, on_policy=False) for arrays
    [M,B,...] of M micro-batches.

    The batch's arrays are [M,B,...]. Gradients of the loss *total* are summed over micro-batches
    and divided once by the summed weight, so 1 x 8 equals 8 x 1 for every loss. `metrics` holds the
    loss, its terms, `stats` of the policy, the gradient norm and `finite`. `update_norm` is by
    how much the parameters moved in their own dtype. `update_share` is the share of their elements
    that moved: in bfloat16 a small update rounds away.

    With adapters, `state` holds them alone and `frozen` the model's own parameters, which get
    neither gradient nor optimizer state; `dropout_key` turns the adapters' dropout on, anew for
    every micro-batch of every step.

    With `on_policy`, the loss gets the policy's own log-probs for `old_logp`, their gradient
    stopped (`own_old_logp`). `stats` gets the batch as it is.
    """
    gradient = make_gradient(apply, loss, stats, dropout_key=dropout_key)
    update = make_update(optimizer)

    def train_step(
        state: TrainState,
        batch: Batch,
        frozen: PyTree | None = None,
        learning_rate: Array | None = None,  # float32; None: the optimizer's own
        on_policy: Bool[Array, ""] | bool = False,
    ) -> tuple[TrainState, Metrics]:
        micro_batches = batch.weight.shape[0]
        at = state.step * micro_batches + jnp.arange(micro_batches)  # places in the run
        of_batch = partial(gradient, frozen=frozen, on_policy=on_policy)
        grads, metrics, squares = _accumulate(of_batch, state.params, batch, at)
        return update(state, grads, metrics, learning_rate, squares)

    return train_step


def make_row_step(apply: Apply, loss: Loss) -> Callable[[PyTree, Batch], dict[str, Array]]:
    """Make measure(params, batch [B,...], **shape) -> the loss and every metric of each row alone,
    [B]; `shape` is `Laid.shape`.

    For held-out rows: a mean over rows has an interval only if the rows are known.
    """

    def measure(params: PyTree, batch: Batch, **shape) -> dict[str, Array]:
        fields = (batch.prompt, batch.prompt_length, batch.completion, batch.mask)
        policy, _ = apply(params, *fields, **shape)

        def row(policy: Policy, batch: Batch) -> dict[str, Any]:
            mean, metrics = loss(*jax.tree.map(lambda x: x[None], (policy, batch)))
            return {"loss": mean.result()} | {name: m.result() for name, m in metrics.items()}

        return jax.vmap(row)(policy, batch)

    return measure


class LaidStep:
    """Take an optimizer step on micro-batches of different shapes: one program for each shape.

    Call it as step(state, micro_batches, frozen, learning_rate, on_policy). Gradients are summed
    and divided as `make_train_step` does it, so the step is the same but for the order of sums.
    The state is donated. The gradient's variance is not estimated: micro-batches of
    like length are no random parts of a batch.

    Args:
      gradient: from `make_gradient`.
      update: from `make_update`.
      most: micro-batches of a step at most, by which their places in the run are told apart.
      params: abstract parameters, whose shardings the sums have.
    """

    def __init__(self, gradient: Callable, update: Callable, *, most: int, params: PyTree):
        self.gradient, self.most = gradient, most
        self.layout: Any = Sums(jax.tree.map(lambda x: x.sharding, params), None)  # type: ignore[arg-type]
        self.empty: Callable[[], Sums] | None = None
        self.add = jax.jit(
            self._add, donate_argnums=0, static_argnames="slots", out_shardings=self.layout
        )
        self.update = jax.jit(
            lambda state, sums, rate: update(state, *sums, rate), donate_argnums=0
        )

    def __call__(
        self,
        state: TrainState,
        micro_batches: Sequence[Laid],
        frozen: PyTree | None = None,
        learning_rate: Array | None = None,  # float32; None: the optimizer's own
        on_policy: Bool[Array, ""] | bool = False,
    ) -> tuple[TrainState, Metrics]:
        more = (state.step, frozen, on_policy)
        if self.empty is None:
            self.empty = self._make_empty(state.params, micro_batches[0], *more)
        sums = self.empty()
        for laid in micro_batches:
            sums = self.add(sums, state.params, laid.batch, *more, laid.place, **laid.shape)
        return self.update(state, sums, learning_rate)

    def _add(self, sums: Sums, params, batch, step, frozen, on_policy, place, **shape) -> Sums:
        at = step * self.most + place
        grads, seen = self.gradient(
            params, batch, at=at, frozen=frozen, on_policy=on_policy, **shape
        )
        merged = {name: sums.metrics[name].merge(seen[name]) for name in seen}
        return Sums(jax.tree.map(jnp.add, sums.grads, grads), merged)

    def _make_empty(
        self, params: PyTree, laid: Laid, step, frozen, on_policy
    ) -> Callable[[], Sums]:
        """Make the program that gives sums of nothing, cut as the parameters are."""
        of_batch = partial(self.gradient, at=step, frozen=frozen, on_policy=on_policy, **laid.shape)
        grads, metrics = jax.eval_shape(of_batch, params, laid.batch)

        def empty() -> Sums:
            return Sums(_zeros(grads), {name: _neutral(kind) for name, kind in metrics.items()})

        return jax.jit(empty, out_shardings=self.layout)


def own_old_logp(policy: Policy, batch: Batch, on_policy: Bool[Array, ""] | bool) -> Batch:
    """Return the batch with the policy's own log-probs for old ones where `on_policy` holds.

    In the first update of a rollout the policy is the one that sampled, so its ratio is 1. Another
    program computed `old_logp`, and its rounding would be taken for a move of the policy. Their
    gradient is stopped: the ratio is 1 in value and keeps its slope, as TRL has it.
    """
    own = jax.lax.stop_gradient(policy.logp)
    return batch._replace(old_logp=jnp.where(on_policy, own, batch.old_logp))


def _once(value: Array) -> Mean:
    """Wrap a number that is measured once."""
    return Mean(value, jnp.float32(1))


def _norm(tree: PyTree) -> Array:
    """Return the global norm, summed in float32 at least."""
    return optax.tree.norm(jax.tree.map(wide, tree))


def _nonzero(tree: PyTree) -> Array:
    """Return the share of elements that are not 0; of an axis at a time, as 2^24 + 1 is 2^24."""
    leaves = [x for x in jax.tree.leaves(tree) if x.size]
    # Sizes as floats: as an int32 that of a model beyond 2^31 parameters overflows.
    shares = [
        jnp.mean(jnp.mean(x != 0, axis=-1, dtype=jnp.float32)) * float(x.size) for x in leaves
    ]
    return sum(shares, jnp.float32(0)) / float(max(sum(x.size for x in leaves), 1))


def _accumulate(
    gradient, params: PyTree, batch: Batch, at: Array
) -> tuple[PyTree, Metrics, Mean | None]:
    """Sum gradients (in float32 at least) and merge metrics over the leading micro-batch axis.

    Of several micro-batches return also the mean of |g|^2, g the gradient of one's mean loss."""
    first = jax.tree.map(lambda x: x[0], batch)
    if batch.weight.shape[0] == 1:
        grads, metrics = gradient(params, first, at[0])
        return grads, metrics, None
    shapes = jax.eval_shape(gradient, params, first, at[0])
    grads = _zeros(shapes[0])
    metrics = {name: _neutral(kind) for name, kind in shapes[1].items()}

    def body(carry, xs):
        grads, metrics, squares = carry
        more, seen = gradient(params, *xs)
        merged = {name: metrics[name].merge(seen[name]) for name in metrics}
        weight = seen["loss"].weight
        square = jnp.where(weight > 0, (_norm(more) / jnp.maximum(weight, 1e-20)) ** 2, 0.0)
        squares = squares.merge(Mean(square, (weight > 0).astype(jnp.float32)))
        return (jax.tree.map(jnp.add, grads, more), merged, squares), None

    zero = Mean(jnp.float32(0), jnp.float32(0))
    return jax.lax.scan(body, (grads, metrics, zero), (batch, at))[0]


def _variance(squares: Mean, norm: Array) -> Mean:
    """Estimate the variance of the step's gradient from its M > 1 micro-batches.

    With g_m the gradient of micro-batch m, all of one weight, and g their mean: 1/M * 1/(M-1) *
    sum_m |g_m - g|^2 = (mean |g_m|^2 - |g|^2)/(M-1), the trace of the covariance of g.
    Micro-batches of filler rows are not counted; unequal weights make it an approximation.
    """
    variance = (squares.result() - norm**2) / jnp.maximum(squares.weight - 1, 1)
    return Mean(variance, jnp.float32(squares.weight > 1))


def _zeros(shapes: PyTree) -> PyTree:
    """Return zeros to sum into, in float32 at least."""
    return jax.tree.map(
        lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), shapes
    )


def _neutral(kind):
    """Return the element that changes nothing when merged."""
    zero = {"Mean": 0.0, "Max": -jnp.inf, "Min": jnp.inf}[type(kind).__name__]
    return jax.tree.map(lambda s: jnp.full(s.shape, zero, s.dtype), kind)


def make_term_norms(apply: Apply, loss: Loss) -> Callable[..., dict[str, Mean]]:
    """Make norms(params, batch [B,...], frozen=None, on_policy=False) -> {"grad_norm/<term>": Mean}
    of each loss term.

    A diagnostic: one backward pass per term. With beta = 1e-3 the regression's gradient dwarfs the
    repulsion's.
    """

    def forward(params, batch: Batch, frozen, on_policy, **shape):
        fields = (batch.prompt, batch.prompt_length, batch.completion, batch.mask)
        policy, _ = apply(join(frozen, params), *fields, **shape)
        _, metrics = loss(policy, own_old_logp(policy, batch, on_policy))
        return {name: m.result() for name, m in metrics.items() if name.startswith("term/")}

    def norms(
        params: PyTree,
        batch: Batch,
        frozen: PyTree | None = None,
        on_policy: Bool[Array, ""] | bool = False,
        **shape: Any,  # `Laid.shape`
    ) -> dict[str, Mean]:
        terms, pullback = jax.vjp(lambda p: forward(p, batch, frozen, on_policy, **shape), params)
        found = {}
        for name in terms:
            one_hot = {other: jnp.float32(other == name) for other in terms}
            norm = _norm(pullback(one_hot)[0])
            found["grad_norm/" + name.removeprefix("term/")] = _once(norm)
        return found

    return norms


def abstract_state(
    mesh: Mesh, params: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
    """Return shapes, dtypes and shardings of everything a train step updates."""
    opt_state = abstract(mesh, jax.eval_shape(optimizer.init, params))
    step: Any = jax.ShapeDtypeStruct((), np.int32, sharding=replicated(mesh))
    return TrainState(params, opt_state, step)


def fresh_optimizer(mesh: Mesh, params: PyTree, optimizer: optax.GradientTransformation) -> PyTree:
    """Make the optimizer's initial state in its shardings."""
    wanted = abstract_state(mesh, params, optimizer).opt_state
    return jax.jit(optimizer.init, out_shardings=jax.tree.map(lambda s: s.sharding, wanted))(params)


def fresh_state(mesh: Mesh, params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """Make the state that a new run starts from; the first train step donates `params`."""
    return TrainState(
        params, fresh_optimizer(mesh, params, optimizer), put_whole(mesh, np.int32(0))
    )
