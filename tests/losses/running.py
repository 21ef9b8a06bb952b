"""Any loss of the table, run once: its Mean, its metrics, its gradient."""

import functools

import jax

from ssppo_jax.losses import LOSSES


@functools.cache
def compiled(name, hyper):
    def loss(policy, batch):
        mean, metrics = LOSSES[name](policy, batch, **dict(hyper))
        return mean.total, (mean, metrics)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def run(name, policy, batch, **hyper):
    """Mean, metrics, and gradients of the undivided total with respect to the policy's arrays."""
    (_, (mean, metrics)), gradient = compiled(name, tuple(sorted(hyper.items())))(policy, batch)
    return mean, metrics, gradient


def value(name, policy, batch, **hyper):
    """The loss alone, without jit: cheaper than a compilation where only a number is wanted."""
    return float(LOSSES[name](policy, batch, **hyper)[0].result())
