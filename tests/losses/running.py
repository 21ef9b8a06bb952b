"""Any loss of the table, run once: its Mean, its metrics, its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssppo_jax.losses import LOSSES
from ssppo_jax.types import Policy


def loss_of(name):
    """The function of a case: "xpo/ipo" is xpo."""
    return LOSSES[name.partition("/")[0]]


def differentiate(name, policy, batch, **hyper):
    """Mean, metrics, and gradients of the undivided total with respect to the policy's arrays."""

    def loss(policy):
        mean, metrics = loss_of(name)(policy, batch, **hyper)
        return mean.total, (mean, metrics)

    (_, (mean, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(policy)
    return mean, metrics, gradient


@functools.cache
def compiled(name, hyper):
    return jax.jit(lambda policy, batch: differentiate(name, policy, batch, **dict(hyper)))


def run(name, policy, batch, **hyper):
    """`differentiate`, under jit."""
    return compiled(name, tuple(sorted(hyper.items())))(policy, batch)


def value(name, policy, batch, **hyper):
    """The loss alone, without jit: cheaper than a compilation where only a number is wanted."""
    return float(loss_of(name)(policy, batch, **hyper)[0].result())


def slope(name, policy, batch, **hyper):
    """Gradient of the loss with respect to logp, without jit."""
    loss = lambda logp: loss_of(name)(Policy(logp, policy.hidden), batch, **hyper)[0].result()  # noqa: E731
    return np.asarray(jax.grad(loss)(jnp.asarray(policy.logp)))


def assert_agrees(name, policy, batch, hyper, loss, gradient):
    """The mean loss and its gradient with respect to logp are these, to 1e-5."""
    mean = lambda logp: loss_of(name)(Policy(logp, policy.hidden), batch, **hyper)[0].result()  # noqa: E731
    found, slopes = jax.jit(jax.value_and_grad(mean))(policy.logp)
    np.testing.assert_allclose(found, loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slopes, gradient * batch.mask, rtol=1e-5, atol=1e-6)


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]
