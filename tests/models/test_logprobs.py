"""Token log-probs in chunks of the vocabulary: the numbers of log-softmax, without ever holding
whole logits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from tiny import jit

from ssppo_jax.models.logprobs import logits_of, token_logprobs

B, K, T, D, V = 2, 3, 7, 8, 24  # not a multiple of some of the chunks below: the last then overlaps


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((B, K, T, D)).astype(np.float32)
    return (
        hidden,
        rng.standard_normal((D, V)).astype(np.float32),
        rng.integers(0, V, (B, K, T)).astype(np.int32),
    )


def numpy_logprobs(hidden, kernel):
    logits = hidden.astype(np.float64) @ kernel.astype(np.float64)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


@functools.cache
def value_and_gradient(chunk, parts=1):
    weight = np.random.default_rng(1).standard_normal((B, K, T)).astype(np.float32)

    def value(hidden, kernel, targets):
        out = token_logprobs(hidden, kernel, targets, chunk=chunk, parts=parts, entropy=True)
        return jnp.sum(out.logp * weight), out

    return jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))


CHUNKS = [(1, 1), (3, 1), (7, 1), (24, 1), (100, 1), (7, 2), (9, 3), (1, 4)]


@pytest.mark.parametrize("how", CHUNKS, ids=str)  # entries, parts of the vocabulary
def test_logp_and_entropy_equal_numpy_for_every_chunk(case, how):
    (_, out), _ = value_and_gradient(*how)(*case)
    whole = numpy_logprobs(*case[:2])
    np.testing.assert_allclose(
        out.logp, np.take_along_axis(whole, case[2][..., None], -1)[..., 0], atol=1e-5
    )
    np.testing.assert_allclose(out.entropy, -(np.exp(whole) * whole).sum(-1), atol=1e-5)


@pytest.mark.parametrize("how", [(7, 1), (3, 1), (10, 2), (4, 4)], ids=str)
def test_chunked_gradients_are_those_of_log_softmax(case, how):
    weight = np.random.default_rng(1).standard_normal((B, K, T)).astype(np.float32)

    def plain(hidden, kernel, targets):
        logp = jnp.take_along_axis(jax.nn.log_softmax(hidden @ kernel), targets[..., None], -1)[
            ..., 0
        ]
        return jnp.sum(logp * weight)

    _, chunked = value_and_gradient(*how)(*case)
    for a, b in zip(chunked, jit(jax.grad(plain, argnums=(0, 1)))(*case), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("softcap", "temperature"), [(1.5, 1.0), (1.5, 0.6), (None, 0.6)])
def test_a_soft_cap_and_a_temperature_bend_the_logits_and_their_gradient(
    case, softcap, temperature
):
    def chunked(hidden, kernel):
        settings = {"softcap": softcap, "temperature": temperature}
        return jnp.sum(jnp.sin(token_logprobs(hidden, kernel, case[2], chunk=7, **settings).logp))

    def plain(hidden, kernel):
        logits = hidden @ kernel
        logits = (softcap * jnp.tanh(logits / softcap) if softcap else logits) / temperature
        return jnp.sum(
            jnp.sin(jnp.take_along_axis(jax.nn.log_softmax(logits), case[2][..., None], -1))
        )

    for a, b in zip(
        *(jit(jax.value_and_grad(f, argnums=(0, 1)))(*case[:2]) for f in (chunked, plain)),
        strict=True,
    ):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), a, b)


def test_the_gradient_is_the_closed_form(case):
    """d logp[target] / d hidden = kernel[:, target] - sum_v p_v kernel[:, v]; padded chunk slots
    add nothing."""
    hidden, kernel, targets = case
    weight = np.random.default_rng(1).standard_normal((B, K, T))
    gap = weight[..., None] * (np.eye(V)[targets] - np.exp(numpy_logprobs(hidden, kernel)))
    _, (of_hidden, of_kernel) = value_and_gradient(3)(*case)
    np.testing.assert_allclose(of_hidden, gap @ kernel.T, atol=1e-5)
    np.testing.assert_allclose(of_kernel, np.einsum("bktd,bktv->dv", hidden, gap), atol=1e-5)


def test_no_array_holds_whole_logits():
    """Forward or backward: the largest array is one chunk's logits."""
    b, k, t, d, v, chunk = 2, 2, 24, 4, 97, 10

    def value(hidden, kernel, targets):
        return jnp.sum(token_logprobs(hidden, kernel, targets, chunk=chunk, entropy=True).logp)

    args = (jnp.zeros((b, k, t, d)), jnp.zeros((d, v)), jnp.zeros((b, k, t), jnp.int32))
    shapes = set(shapes_in(jax.make_jaxpr(jax.value_and_grad(value, argnums=(0, 1)))(*args).jaxpr))
    assert (b, k, t, 1, chunk) in shapes  # the walk reaches inside the scan
    assert max(math.prod(shape) for shape in shapes) == b * k * t * chunk


def shapes_in(jaxpr):
    for eqn in jaxpr.eqns:
        yield from (var.aval.shape for var in eqn.outvars)
        for sub in core.jaxprs_in_params(eqn.params):
            yield from shapes_in(sub)


def test_entropy_carries_no_gradient(case):
    def value(hidden):
        return jnp.sum(token_logprobs(hidden, *case[1:], chunk=7, entropy=True).entropy)

    assert not np.any(jit(jax.grad(value))(case[0]))


def test_bfloat16_states_give_float32_sums(case):
    hidden, kernel, targets = (
        jnp.asarray(case[0], jnp.bfloat16),
        jnp.asarray(case[1], jnp.bfloat16),
        case[2],
    )
    out = jit(lambda h: token_logprobs(h, case[1], targets, chunk=3, entropy=True))(hidden)
    assert out.logp.dtype == out.entropy.dtype == logits_of(hidden, kernel).dtype == jnp.float32
    whole = numpy_logprobs(np.asarray(hidden, np.float32), np.asarray(kernel, np.float32))
    np.testing.assert_allclose(
        out.logp, np.take_along_axis(whole, targets[..., None], -1)[..., 0], atol=1e-5
    )


def test_large_logits_stay_finite(case):
    hidden, kernel, targets = case
    (_, out), gradient = value_and_gradient(3)(hidden * 1e4, kernel, targets)
    assert all(np.isfinite(x).all() for x in (out.logp, out.entropy, *gradient))
