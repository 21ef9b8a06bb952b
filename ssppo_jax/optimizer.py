"""Provide optimizers and schedules by name, on optax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Key
from ml_collections import ConfigDict

from ssppo_jax.config import OWN, NonNegative, Positive, Table, Unit, bind
from ssppo_jax.errors import ConfigError
from ssppo_jax.types import Array, PyTree


def rmsprop(*, decay: Unit = 0.99, eps: Positive = 1e-8, momentum: NonNegative = 0.0):
    """Make RMSProp with PyTorch's defaults, as SPPO's scripts use (S-SPPO names none:
    reconstruction).

    Args:
      decay: decay of the running mean square (torch's alpha).
      eps: added to the root mean square.
      momentum: 0 for none.
    """
    parts = [optax.scale_by_rms(decay=decay, eps=eps, eps_in_sqrt=False)]
    if momentum:
        parts.append(optax.trace(decay=momentum))
    return optax.chain(*parts)


def adamw(
    *, b1: Unit = 0.9, b2: Unit = 0.999, eps: Positive = 1e-8, weight_decay: NonNegative = 0.0
):
    """Make AdamW (Loshchilov & Hutter, arXiv 1711.05101).

    Args:
      b1: decay of the gradient's running mean.
      b2: decay of its running mean square.
      eps: added to the root mean square.
      weight_decay: decoupled weight decay, per step, times the learning rate.
    """
    parts = [optax.scale_by_adam(b1=b1, b2=b2, eps=eps)]
    if weight_decay:
        parts.append(optax.add_decayed_weights(weight_decay))
    return optax.chain(*parts)


def lion(*, b1: Unit = 0.9, b2: Unit = 0.99, weight_decay: NonNegative = 0.0):
    """Make Lion (Chen et al. 2023, arXiv 2302.06675): one moment, sign updates, half of Adam's
    state.

    Args:
      b1: interpolation of the update.
      b2: decay of the running mean.
      weight_decay: decoupled weight decay.
    """
    parts = [optax.scale_by_lion(b1=b1, b2=b2)]
    if weight_decay:
        parts.append(optax.add_decayed_weights(weight_decay))
    return optax.chain(*parts)


def sgd(*, momentum: NonNegative = 0.0):
    """Make plain gradient descent.

    Args:
      momentum: 0 for none.
    """
    return optax.trace(decay=momentum) if momentum else optax.identity()


OPTIMIZERS = Table({"rmsprop": rmsprop, "adamw": adamw, "lion": lion, "sgd": sgd}, "optimizers")

STATE_DTYPES = ("param", "float32", "bfloat16")
ROUNDINGS = ("master", "stochastic", "nearest")
SCHEDULES = ("linear", "cosine", "constant")


def learning_rate(
    peak: float, *, schedule: str, warmup_ratio: float, total_steps: int
) -> optax.Schedule:
    """Warm up linearly over `warmup_ratio * total_steps` steps, then decay to 0 or stay constant.

    Step s of w warm-up steps runs at peak * (s+1)/w, so the first step has a non-zero rate. A step
    may be a fraction: see `make_rates`.
    """
    warmup = int(warmup_ratio * total_steps)
    rest = max(total_steps - warmup, 1)
    after = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "constant": optax.constant_schedule(peak),
    }[schedule]
    if warmup == 0:
        return after
    return optax.join_schedules(
        [optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1)), after], [warmup]
    )


def make_optimizer(
    transform: optax.GradientTransformation,
    learning_rate: float,
    *,
    max_grad_norm: float,
    state_dtype: str = "param",
) -> optax.GradientTransformationExtraArgs:
    """Clip by global norm (0: no clipping), precondition, scale by the learning rate.

    `update(..., learning_rate=x)` gives one update its rate.

    Args:
      transform: the preconditioner.
      learning_rate: of an update that is not given its own.
      max_grad_norm: of all gradients together.
      state_dtype: what the preconditioner's moments are kept in, "param" (each parameter's own), or
        a dtype.
    """
    if state_dtype != "param":
        transform = kept_in(transform, jnp.dtype(state_dtype))
    parts = [optax.clip_by_global_norm(max_grad_norm)] if max_grad_norm else []
    return optax.chain(*parts, transform, _scale_by_given_rate(learning_rate))


def _scale_by_given_rate(default: float) -> optax.GradientTransformationExtraArgs:
    """Multiply updates by minus the learning rate that comes with the call.

    An optax schedule counts the steps taken. How long a run is decided by its rollouts, so the rate
    comes from the host.
    """

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None, **given):
        del params
        rate = given.get("learning_rate", default)
        return jax.tree.map(lambda u: -jnp.asarray(rate, u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def kept_in(
    transform: optax.GradientTransformation, dtype: jnp.dtype
) -> optax.GradientTransformation:
    """Keep the state of `transform` in `dtype` between steps and in float32 during one.

    In bfloat16 a running mean stops where a step changes less than half a unit of its last place.
    Towards 1, a mean square with decay 0.9 comes to 0.98, with 0.99 to 0.8, with 0.999 to 0.25.
    AdamW's second moment is therefore not for bfloat16.
    """

    def init(params: PyTree) -> PyTree:
        return _cast(transform.init(params), dtype)

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None):
        updates, state = transform.update(
            _cast(updates, jnp.float32), _cast(state, jnp.float32), params
        )
        return updates, _cast(state, dtype)

    return optax.GradientTransformation(init, update)


def _cast(tree: PyTree, to: Any) -> PyTree:
    return jax.tree.map(
        lambda x: x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


# ---- parameters of half precision ----------------------------------------------------------------


class Rounded(NamedTuple):
    """Hold the state of an optimizer whose parameters are bfloat16."""

    inner: PyTree  # of the optimizer
    kept: PyTree  # outlives a fresh optimizer: float32 parameters, or the number of updates


def with_master(
    optimizer: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Keep float32 parameters in the state, update them, and let bfloat16 ones follow.

    A bfloat16 weight of 0.02 moves in steps of 1.2e-4, so a sum with an update of 5e-7 is the
    weight again. The float32 weight takes the update, and the bfloat16 weight is that weight
    rounded to nearest. It costs 4 bytes a parameter. Moments of dtype "param" are float32, 4 bytes
    each. As in mixed-precision training (arXiv 1710.03740).
    """

    def init(params: PyTree) -> Rounded:
        master = _cast(params, jnp.float32)
        return Rounded(optimizer.init(master), master)

    def update(gradient: PyTree, state: Rounded, params: PyTree | None = None, **given):
        gradient = _cast(gradient, jnp.float32)
        updates, inner = optimizer.update(gradient, state.inner, state.kept, **given)
        master = jax.tree.map(add, state.kept, updates)
        moves = jax.tree.map(lambda m, p: round_to(m, p.dtype) - wide(p), master, params)
        return moves, Rounded(inner, master)

    return optax.GradientTransformationExtraArgs(init, update)


def rounded_at_random(
    optimizer: optax.GradientTransformationExtraArgs, key: Key[jax.Array, ""]
) -> optax.GradientTransformationExtraArgs:
    """Round updated bfloat16 parameters up or down at random, so that the mean is exact.

    A sum between two neighbours a < x < b becomes b with probability (x - a)/(b - a)
    (arXiv 2010.06192; PyTorch's `bf16_stochastic_round` in torchao). It costs no memory. A weight
    of 0.02 under updates of 5e-7 moves a step of 1.2e-4 once in 240 updates. The numbers are
    addressed by the number of updates and the parameter.
    """

    def init(params: PyTree) -> Rounded:
        return Rounded(optimizer.init(params), jnp.zeros((), jnp.int32))

    def update(gradient: PyTree, state: Rounded, params: PyTree | None = None, **given):
        gradient = _cast(gradient, jnp.float32)
        updates, inner = optimizer.update(gradient, state.inner, params, **given)
        step, (leaves, tree) = jax.random.fold_in(key, state.kept), jax.tree.flatten(params)
        moves = [
            stochastically(wide(p) + wide(u), jax.random.fold_in(step, i)) - wide(p)
            for i, (p, u) in enumerate(zip(leaves, jax.tree.leaves(updates), strict=True))
        ]
        return jax.tree.unflatten(tree, moves), Rounded(inner, state.kept + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def stochastically(x: Float[Array, "*A"], key: Key[jax.Array, ""]) -> Float[Array, "*A"]:
    """Round float32 numbers to bfloat16's at random; their mean is x.

    A bfloat16 is the upper half of a float32, and adding a random lower half carries into it with
    the right probability."""
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)


def add(p: Float[Array, "*A"], u: Float[Array, "*A"]) -> Float[Array, "*A"]:
    """Return p + u, summed in float32 at least and rounded to nearest in p's dtype."""
    return round_to(wide(p) + wide(u), p.dtype).astype(p.dtype)


def round_to(x: Float[Array, "*A"], dtype: Any) -> Float[Array, "*A"]:
    """Round to the nearest number of `dtype`, in x's own dtype.

    A compiler may leave out a cast to a narrower dtype and back, and would then report moves that
    the parameters do not make. It keeps this."""
    kind = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, kind.nexp, kind.nmant)


def wide(x: Float[Array, "*A"]) -> Float[Array, "*A"]:
    """Raise half precisions to float32 and leave wider types alone."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def restarted(old: PyTree, fresh: PyTree) -> PyTree:
    """Return a fresh optimizer state with what belongs to the parameters from the old one."""
    return fresh._replace(kept=old.kept) if isinstance(old, Rounded) else fresh


# ---- of a run ------------------------------------------------------------------------------------


def make_rates(config: ConfigDict, planned: Sequence[int]) -> Callable[[int, int], list[float]]:
    """Make rates(iteration, steps) -> the learning rate of each step that an iteration takes.

    `planned` holds every iteration's optimizer steps when no prompt is left out. That is what can
    be known before a run. An iteration owns as much of the schedule as it plans. If it takes fewer
    steps, for ties, filtered groups or failed prompts, they are spread evenly over that part. So
    the schedule always ends with the run, and a rate depends on the iteration and its rollout
    alone.
    """
    c = config.optimizer

    def length(steps: int) -> int:  # of the schedule of an iteration that plans so many steps
        return int(steps // config.train.epochs * (c.schedule_epochs or config.train.epochs))

    def rates(iteration: int, steps: int) -> list[float]:
        whole_run = c.scope == "run"
        rate = learning_rate(
            c.learning_rate,
            schedule=c.schedule,
            warmup_ratio=c.warmup_ratio,
            total_steps=sum(planned) if whole_run else length(planned[iteration]),
        )
        start = sum(planned[:iteration]) if whole_run else 0
        stretch = planned[iteration] / max(steps, 1)
        return [float(rate(start + i * stretch)) for i in range(steps)]

    return rates


def make_run_optimizer(
    config: ConfigDict, rounding_key: Key[jax.Array, ""]
) -> optax.GradientTransformationExtraArgs:
    """Make the configured optimizer; a step's learning rate is given to `update`.

    `rounding_key` is for bfloat16 parameters that are rounded at random."""
    c, rounding = config.optimizer, rounding_of(config)
    state_dtype = c.state_dtype
    if rounding == "stochastic" and state_dtype == "param":
        state_dtype = config.model.param_dtype  # the gradients it sees are float32
    transform = bind(OPTIMIZERS, c)()
    if OWN.fullmatch(c.name):
        check_transform(c.name, transform)
    made = make_optimizer(
        transform, c.learning_rate, max_grad_norm=c.max_grad_norm, state_dtype=state_dtype
    )
    if rounding == "master":
        made = with_master(made)
    elif rounding == "stochastic":
        made = rounded_at_random(made, rounding_key)
    return made


def check_transform(name: str, transform: object) -> None:
    """Check that a user's optimizer gives a direction down, for the learning rate to scale.

    Raises:
      ConfigError: it gives no optax transformation, or one that scales by a learning rate itself,
        and so would go up.
    """
    remedy = "return the direction alone, such as optax.scale_by_adam(), not optax.adam(1e-3)"
    if not isinstance(transform, optax.GradientTransformation):
        raise ConfigError(
            f"optimizer={name}: it returns a {type(transform).__name__} and no optax"
            f" transformation; {remedy}"
        )
    ones = {"x": jnp.ones(2)}
    moved = transform.update(ones, transform.init(ones), ones)[0]["x"]
    if moved.sum() < 0:
        raise ConfigError(
            f"optimizer={name}: for a gradient of 1 its update is {moved[0]:.3g}, which the rate"
            f" would turn uphill; {remedy}"
        )


def rounding_of(config: ConfigDict) -> str:
    """Return how updated parameters are rounded; float32 ones need no more than "nearest"."""
    half = config.model.param_dtype == "bfloat16"
    return config.optimizer.rounding if half else "nearest"
