"""Token log-probs in chunks: the numbers of log-softmax, without ever holding logits of all tokens at once."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from tiny import jit

from ssppo_jax.models.logprobs import logits_of, token_logprobs

B, K, T, D, V = 2, 3, 7, 8, 24  # T is not a multiple of the chunks below


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((B, K, T, D)).astype(np.float32)
    return hidden, rng.standard_normal((D, V)).astype(np.float32), rng.integers(0, V, (B, K, T)).astype(np.int32)


def numpy_logprobs(hidden, kernel):
    logits = hidden.astype(np.float64) @ kernel.astype(np.float64)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


@functools.cache
def value_and_gradient(chunk):
    weight = np.random.default_rng(1).standard_normal((B, K, T)).astype(np.float32)

    def value(hidden, kernel, targets):
        out = token_logprobs(hidden, kernel, targets, chunk=chunk, entropy=True)
        return jnp.sum(out.logp * weight), out

    return jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_logp_and_entropy_equal_numpy_for_every_chunk(case, chunk):
    (_, out), _ = value_and_gradient(chunk)(*case)
    whole = numpy_logprobs(*case[:2])
    np.testing.assert_allclose(out.logp, np.take_along_axis(whole, case[2][..., None], -1)[..., 0], atol=1e-5)
    np.testing.assert_allclose(out.entropy, -(np.exp(whole) * whole).sum(-1), atol=1e-5)


def test_chunked_gradients_equal_unchunked(case):
    (_, whole), (_, chunked) = (value_and_gradient(c)(*case) for c in (7, 3))
    for a, b in zip(chunked, whole, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_gradient_is_the_closed_form(case):
    """d logp[target] / d hidden = kernel[:, target] - sum_v p_v kernel[:, v]; padded chunk slots add nothing."""
    hidden, kernel, targets = case
    weight = np.random.default_rng(1).standard_normal((B, K, T))
    gap = weight[..., None] * (np.eye(V)[targets] - np.exp(numpy_logprobs(hidden, kernel)))
    _, (of_hidden, of_kernel) = value_and_gradient(3)(*case)
    np.testing.assert_allclose(of_hidden, gap @ kernel.T, atol=1e-5)
    np.testing.assert_allclose(of_kernel, np.einsum("bktd,bktv->dv", hidden, gap), atol=1e-5)


def test_no_array_holds_the_logits_of_all_tokens():
    """Forward or backward: the largest array with a vocabulary axis is one chunk's logits, or the kernel."""
    b, k, t, d, v, chunk = 2, 2, 24, 4, 97, 4

    def value(hidden, kernel, targets):
        return jnp.sum(token_logprobs(hidden, kernel, targets, chunk=chunk, entropy=True).logp)

    args = (jnp.zeros((b, k, t, d)), jnp.zeros((d, v)), jnp.zeros((b, k, t), jnp.int32))
    shapes = set(shapes_in(jax.make_jaxpr(jax.value_and_grad(value, argnums=(0, 1)))(*args).jaxpr))
    assert (b, k, chunk, v) in shapes  # the walk reaches inside the scan
    assert max(math.prod(shape) for shape in shapes) == b * k * chunk * v


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
    hidden, kernel, targets = jnp.asarray(case[0], jnp.bfloat16), jnp.asarray(case[1], jnp.bfloat16), case[2]
    out = jit(lambda h: token_logprobs(h, case[1], targets, chunk=3, entropy=True))(hidden)
    assert out.logp.dtype == out.entropy.dtype == logits_of(hidden, kernel).dtype == jnp.float32
    whole = numpy_logprobs(np.asarray(hidden, np.float32), np.asarray(kernel, np.float32))
    np.testing.assert_allclose(out.logp, np.take_along_axis(whole, targets[..., None], -1)[..., 0], atol=1e-5)


def test_large_logits_stay_finite(case):
    hidden, kernel, targets = case
    (_, out), gradient = value_and_gradient(3)(hidden * 1e4, kernel, targets)
    assert all(np.isfinite(x).all() for x in (out.logp, out.entropy, *gradient))
