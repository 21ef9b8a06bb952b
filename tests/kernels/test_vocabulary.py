"""Log-probs of given tokens against NumPy in float64, with the gradient, on sizes that fit no block."""

import functools

import jax
import numpy as np
import pytest

from ssppo_jax.kernels import library, vocabulary


@pytest.fixture(scope="module", autouse=True)
def ready():
    assert library.missing() is None


# N, D, V: rows beyond a core's part, entries beyond a span's
CASES = {"one": (1, 4, 7), "small": (13, 10, 250), "rows": (530, 33, 301), "spans": (9, 24, 8001)}


@functools.cache
def inputs(name):
    n, d, v = CASES[name]
    rng = np.random.default_rng((n, d, v))
    arrays = (rng.standard_normal(shape).astype(np.float32) for shape in ((n, d), (v, d)))
    targets = rng.integers(0, v, n).astype(np.int32)
    targets[-1] = v - 1
    return (*arrays, targets)


@functools.partial(jax.jit, static_argnums=4)
def both(hidden, table, targets, d_logp, chunk):
    (logp, entropy), back = jax.vjp(lambda *xs: vocabulary.logprobs(*xs, targets, chunk), hidden, table)
    return logp, entropy, *back((d_logp, jax.numpy.ones_like(d_logp)))  # what the entropy is given goes nowhere


def in_numpy(hidden, table, targets, d_logp):
    hidden, table = hidden.astype(np.float64), table.astype(np.float64)
    logits = hidden @ table.T
    top = logits.max(-1, keepdims=True)
    logps = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    p = np.exp(logps)
    error = d_logp[:, None] * (np.eye(len(table))[targets] - p)
    rows = np.arange(len(targets))
    return logps[rows, targets], -(p * logps).sum(-1), error @ table, error.T @ hidden


@pytest.mark.parametrize("chunk", [7, 100, 4096])
@pytest.mark.parametrize("name", CASES)
def test_logprobs_entropy_and_gradients_are_numpys(name, chunk):
    hidden, table, targets = inputs(name)
    d_logp = np.random.default_rng(5).standard_normal(len(targets)).astype(np.float32)
    found = both(hidden, table, targets, d_logp, chunk)
    for x, y in zip(found, in_numpy(hidden, table, targets, d_logp), strict=True):
        np.testing.assert_allclose(x, y, atol=3e-6 * max(1.0, np.abs(y).max()), rtol=1e-5)


def test_a_row_does_not_know_its_neighbours_to_the_last_bit():
    hidden, table, targets = inputs("rows")
    call = jax.jit(lambda *xs: vocabulary.logprobs(*xs, 4096))
    whole = [np.asarray(x) for x in call(hidden, table, targets)]
    for part in (slice(0, 1), slice(255, 259), slice(500, 530)):
        for x, y in zip(call(hidden[part], table, targets[part]), whole, strict=True):
            np.testing.assert_array_equal(x, y[part])


def test_large_logits_stay_finite():
    hidden, table, targets = inputs("small")
    for x in both(1e4 * hidden, table, targets, np.ones(len(targets), np.float32), 100):
        assert np.isfinite(x).all()


def test_a_frozen_table_costs_no_gradient_and_changes_none():
    hidden, table, targets = inputs("small")

    def of(table):
        return jax.grad(lambda hidden: vocabulary.logprobs(hidden, table, targets, 100)[0].sum())

    text = jax.jit(of(table)).lower(hidden).as_text()
    assert f"tensor<0x{table.shape[1]}xf32>" in text
    want = both(hidden, table, targets, np.ones(len(targets), np.float32), 100)[2]
    np.testing.assert_array_equal(of(table)(hidden), want)


def test_the_entropy_alone_has_no_gradient():
    hidden, table, targets = inputs("small")
    gradient = jax.grad(lambda hidden: vocabulary.logprobs(hidden, table, targets, 100)[1].sum())(hidden)
    np.testing.assert_array_equal(gradient, np.zeros_like(hidden))


def test_other_dtypes_are_refused():
    hidden, table, targets = inputs("small")
    with pytest.raises(TypeError, match="given float16"):
        vocabulary.logprobs(hidden.astype(np.float16), table, targets, 100)
