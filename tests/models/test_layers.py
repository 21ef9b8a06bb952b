"""The pieces of a block: shared keys are attention like any other, padding is never seen, statistics are float32."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jit

from ssppo_jax.models import layers
from ssppo_jax.models.arch import LinearScaling, Llama3Scaling
from ssppo_jax.models.layers import KeyBlock, RMSNorm, rotate

B, K, T, S, H, G, E = 2, 3, 4, 5, 4, 2, 8
attend = jit(functools.partial(layers.attend, scale=E**-0.5))
rotary_table = jit(layers.rotary_table, static_argnums=(1, 2, 3))


@pytest.fixture
def normal():
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def plain_attention(q, k, v, seen):
    """One query row [H,E] over keys [G,S,E], in float64, head by head; query head h reads key head h // (H/G)."""
    out = np.zeros(q.shape)
    for h in range(q.shape[0]):
        g = h // (q.shape[0] // k.shape[0])
        score = np.where(seen, k[g].astype(float) @ q[h].astype(float) / np.sqrt(q.shape[1]), -np.inf)
        weight = np.exp(score - score.max())
        out[h] = weight / weight.sum() @ v[g].astype(float)
    return out


def test_one_softmax_runs_over_shared_and_own_keys(normal):
    q, shared, own = normal(B, K, T, H, E), normal(2, B, G, S, E), normal(2, B, K, G, T, E)
    length = np.array([5, 2])
    prompt_mask = (np.arange(S) < length[:, None])[:, None, None, :]
    causal = np.tril(np.ones((T, T), bool))[None, None]
    got = np.asarray(attend(q, (KeyBlock(*shared, prompt_mask), KeyBlock(*own, causal))))
    for b, k, t in np.ndindex(B, K, T):
        keys, values = (np.concatenate([s[b], o[b, k]], axis=1) for s, o in zip(shared, own, strict=True))
        seen = np.concatenate([np.arange(S) < length[b], np.arange(T) <= t])
        np.testing.assert_allclose(got[b, k, t], plain_attention(q[b, k, t], keys, values, seen), atol=2e-6)


@pytest.mark.parametrize("chunk", [1, 2, 3])  # of 4 queries
def test_queries_in_chunks_give_the_same_and_the_same_gradients(chunk, normal):
    q, shared, own = normal(B, K, T, H, E), normal(2, B, G, S, E), normal(2, B, K, G, T, E)
    prompt_mask = (np.arange(S) < np.array([5, 2])[:, None])[:, None, None, :]
    prompt_mask = prompt_mask & (np.arange(T)[:, None] < np.arange(S)[None] + 2)[None, None]  # a window
    causal = np.tril(np.ones((T, T), bool))[None, None]

    def value(chunk, q, shared, own):
        blocks = KeyBlock(*shared, prompt_mask), KeyBlock(*own, causal)
        out = layers.attend(q, blocks, scale=0.3, softcap=2.0, chunk=chunk)
        return jnp.sum(jnp.sin(out)), out

    whole, cut = (
        jit(jax.value_and_grad(functools.partial(value, c), argnums=(0, 1, 2), has_aux=True))(q, shared, own)
        for c in (0, chunk)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), cut, whole)
    scores = re.findall(r"f32\[2,2,3,2,(\d),9\]", str(jax.make_jaxpr(functools.partial(value, chunk))(q, shared, own)))
    assert set(map(int, scores)) == {chunk}


def test_a_masked_key_changes_no_bit(normal):
    q, (k, v) = normal(1, 1, T, H, E), normal(2, 1, G, S, E)
    mask = (np.arange(S) < 3)[None, None, None, :]
    poisoned = np.where(np.arange(S)[None, None, :, None] < 3, 1.0, 1e6)
    clean = attend(q, (KeyBlock(k, v, mask),))
    np.testing.assert_array_equal(clean, attend(q, (KeyBlock(k * poisoned, v * poisoned, mask),)))


def test_a_row_that_sees_nothing_is_finite_with_a_finite_gradient(normal):
    q, (k, v) = normal(1, 1, T, H, E), normal(2, 1, G, S, E)
    block = KeyBlock(k, v, np.zeros((1, 1, 1, S), bool))
    value, gradient = jit(jax.value_and_grad(lambda q: jnp.sum(layers.attend(q, (block,), scale=1.0) ** 2)))(q)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_attention_scores_of_bfloat16_inputs_are_summed_in_float32():
    q = jnp.ones((1, 1, 1, 1, 256), jnp.bfloat16)
    k = jnp.concatenate([jnp.ones((1, 1, 1, 256)), jnp.ones((1, 1, 1, 256)).at[..., 0].set(2.0)], 2)
    block = KeyBlock(
        k.astype(jnp.bfloat16), jnp.eye(2, 256)[None, None].astype(jnp.bfloat16), jnp.ones((1, 1, 1, 2), bool)
    )
    weight = np.asarray(jit(functools.partial(layers.attend, scale=256**-0.5))(q, (block,)), np.float32)[
        0, 0, 0, 0, :2
    ]  # scores 16 and 16 + 1/16
    np.testing.assert_allclose(weight, [1 / (1 + np.exp(1 / 16)), 1 / (1 + np.exp(-1 / 16))], atol=2e-3)


def test_rms_norm_statistics_are_float32_whatever_the_compute_dtype(normal):
    x = normal(2, 3, 16) * 1e3
    scale = 1 + 0.3 * normal(16)
    norm = RMSNorm(eps=1e-5, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    low = jnp.asarray(x, jnp.bfloat16)
    got = norm.apply({"params": {"scale": scale}}, low)
    wide = np.asarray(low, np.float64)
    want = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * scale
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=2**-7)


def test_rms_norm_eps_is_added_to_the_mean_square():
    norm = RMSNorm(eps=0.25, dtype=jnp.float32, param_dtype=jnp.float32)
    got = norm.apply({"params": {"scale": np.full(4, 3.0, np.float32)}}, np.array([[0.5, -0.5, 0.5, 0.5]], np.float32))
    np.testing.assert_allclose(got, 3 * np.array([[0.5, -0.5, 0.5, 0.5]]) / np.sqrt(0.5), rtol=1e-6)


def test_rotated_dot_products_depend_on_relative_position_only(normal):
    q, k = normal(1, 1, 1, E), normal(1, 1, 1, E)

    def dot(i, j):
        at = [rotate(x, rotary_table(np.array([[p]], np.int32), E, 10000.0)) for x, p in ((q, i), (k, j))]
        return float(jnp.sum(at[0] * at[1]))

    np.testing.assert_allclose(dot(3, 1), dot(90, 88), rtol=1e-4)
    assert abs(dot(3, 1) - dot(1, 3)) > 1e-2  # the direction of rotation shows


def test_rotation_pairs_each_half_with_the_other():
    x = np.array([1.0, 2.0, 3.0, 4.0], np.float32).reshape(1, 1, 1, 4)
    got = np.asarray(rotate(x, rotary_table(np.array([[2]], np.int32), 4, 100.0))).ravel()  # frequencies 1 and 0.1
    c, s = np.cos([2.0, 0.2]), np.sin([2.0, 0.2])
    want = [1 * c[0] - 3 * s[0], 2 * c[1] - 4 * s[1], 3 * c[0] + 1 * s[0], 4 * c[1] + 2 * s[1]]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_llama3_scaling_leaves_short_wavelengths_alone_and_divides_long_ones():
    angle, turned = angles(), angles(Llama3Scaling(8.0, 1.0, 4.0, 64))
    turns = 64 * 10000.0 ** (-np.arange(8) / 8) / (2 * np.pi)  # over the original context: 10.2, 3.2, 1.02, 0.3, ...
    np.testing.assert_allclose(turned[turns > 4], angle[turns > 4], rtol=1e-5)
    np.testing.assert_allclose(turned[turns < 1], angle[turns < 1] / 8, rtol=1e-5)
    between = (turns > 1) & (turns < 4)
    assert between.sum() == 2 and ((turned < angle) & (turned > angle / 8))[between].all()


def test_linear_scaling_divides_every_frequency():
    np.testing.assert_allclose(angles(LinearScaling(4.0)), angles() / 4, rtol=1e-5)


def angles(scaling=None):
    """Of position 1, in a head of 16."""
    cos, sin = rotary_table(np.array([[1]], np.int32), 16, 10000.0, scaling)
    return np.arctan2(np.asarray(sin), np.asarray(cos))[0, 0, :8]


def test_a_soft_cap_bounds_the_scaled_scores_before_they_are_masked(normal):
    q, (k, v) = normal(1, 1, 1, 1, E), normal(2, 1, 1, S, E)
    mask = (np.arange(S) < 3)[None, None, None, :]
    got = jit(functools.partial(layers.attend, scale=3.0, softcap=0.5))(q, (KeyBlock(k, v, mask),))
    score = 0.5 * np.tanh(3.0 * (k[0, 0, :3].astype(float) @ q[0, 0, 0, 0]) / 0.5)
    want = np.exp(score) / np.exp(score).sum() @ v[0, 0, :3]
    np.testing.assert_allclose(np.asarray(got).ravel(), want, atol=1e-6)


def test_gemma_multiplies_by_one_plus_the_scale_before_it_rounds(normal):
    x, scale = normal(2, 3, 16), np.float32(0.3) * normal(16)
    norm = RMSNorm(eps=1e-5, dtype=jnp.bfloat16, param_dtype=jnp.float32, plus_one=True)
    got = norm.apply({"params": {"scale": scale}}, jnp.asarray(x))
    wide = x.astype(np.float64)
    want = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * (1 + scale)
    np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(jnp.asarray(want, jnp.bfloat16), np.float32))
