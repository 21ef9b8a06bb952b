"""Provide optimizers and schedules by name, on optax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ssppo_jax.config import NonNegative, Positive, Unit, bind
from ssppo_jax.types import PyTree


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


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "rmsprop": rmsprop,
    "adamw": adamw,
    "lion": lion,
    "sgd": sgd,
}

STATE_DTYPES = ("param", "float32", "bfloat16")
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

    def cast(tree: PyTree, to: jnp.dtype) -> PyTree:
        return jax.tree.map(
            lambda x: x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
        )

    def init(params: PyTree) -> PyTree:
        return cast(transform.init(params), dtype)

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None):
        updates, state = transform.update(
            cast(updates, jnp.float32), cast(state, jnp.float32), params
        )
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


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


def make_run_optimizer(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """Make the configured optimizer; a step's learning rate is given to `update`."""
    c = config.optimizer
    return make_optimizer(
        bind(OPTIMIZERS, c)(),
        c.learning_rate,
        max_grad_norm=c.max_grad_norm,
        state_dtype=c.state_dtype,
    )
