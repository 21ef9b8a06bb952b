"""The pieces of a block: shared keys are attention like any other, padding is never seen, statistics are float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jit

from ssppo_jax.models import layers
from ssppo_jax.models.arch import Llama3Scaling, tiny_arch
from ssppo_jax.models.layers import KeyBlock, RMSNorm, rotate

B, K, T, S, H, G, E = 2, 3, 4, 5, 4, 2, 8
attend, rotary_table = jit(layers.attend), jit(layers.rotary_table, static_argnums=1)


@pytest.fixture
def normal():
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def plain_attention(q, k, v, seen):
    """One query row [H,E] over keys [S,G,E], in float64, head by head; query head h reads key head h // (H/G)."""
    out = np.zeros(q.shape)
    for h in range(q.shape[0]):
        g = h // (q.shape[0] // k.shape[1])
        score = np.where(seen, k[:, g].astype(float) @ q[h].astype(float) / np.sqrt(q.shape[1]), -np.inf)
        weight = np.exp(score - score.max())
        out[h] = weight / weight.sum() @ v[:, g].astype(float)
    return out


def test_one_softmax_runs_over_shared_and_own_keys(normal):
    q, shared, own = normal(B, K, T, H, E), normal(2, B, S, G, E), normal(2, B, K, T, G, E)
    length = np.array([5, 2])
    prompt_mask = (np.arange(S) < length[:, None])[:, None, None, :]
    causal = np.tril(np.ones((T, T), bool))[None, None]
    got = np.asarray(attend(q, (KeyBlock(*shared, prompt_mask), KeyBlock(*own, causal))))
    for b, k, t in np.ndindex(B, K, T):
        keys, values = (np.concatenate([s[b], o[b, k]]) for s, o in zip(shared, own, strict=True))
        seen = np.concatenate([np.arange(S) < length[b], np.arange(T) <= t])
        np.testing.assert_allclose(got[b, k, t], plain_attention(q[b, k, t], keys, values, seen), atol=2e-6)


def test_a_masked_key_changes_no_bit(normal):
    q, (k, v) = normal(1, 1, T, H, E), normal(2, 1, S, G, E)
    mask = (np.arange(S) < 3)[None, None, None, :]
    poisoned = np.where(np.arange(S)[None, :, None, None] < 3, 1.0, 1e6)
    clean = attend(q, (KeyBlock(k, v, mask),))
    np.testing.assert_array_equal(clean, attend(q, (KeyBlock(k * poisoned, v * poisoned, mask),)))


def test_a_row_that_sees_nothing_is_finite_with_a_finite_gradient(normal):
    q, (k, v) = normal(1, 1, T, H, E), normal(2, 1, S, G, E)
    block = KeyBlock(k, v, np.zeros((1, 1, 1, S), bool))
    value, gradient = jit(jax.value_and_grad(lambda q: jnp.sum(layers.attend(q, (block,)) ** 2)))(q)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_attention_scores_of_bfloat16_inputs_are_summed_in_float32():
    q = jnp.ones((1, 1, 1, 1, 256), jnp.bfloat16)
    k = jnp.concatenate([jnp.ones((1, 1, 1, 256)), jnp.ones((1, 1, 1, 256)).at[..., 0].set(2.0)], 1)
    block = KeyBlock(
        k.astype(jnp.bfloat16), jnp.eye(2, 256)[None, :, None].astype(jnp.bfloat16), jnp.ones((1, 1, 1, 2), bool)
    )
    weight = np.asarray(attend(q, (block,)), np.float32)[0, 0, 0, 0, :2]  # scores 16 and 16 + 1/16
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
    arch = tiny_arch()
    q, k = normal(1, 1, 1, arch.head_dim), normal(1, 1, 1, arch.head_dim)

    def dot(i, j):
        at = [rotate(x, rotary_table(np.array([[p]], np.int32), arch)) for x, p in ((q, i), (k, j))]
        return float(jnp.sum(at[0] * at[1]))

    np.testing.assert_allclose(dot(3, 1), dot(90, 88), rtol=1e-4)
    assert abs(dot(3, 1) - dot(1, 3)) > 1e-2  # the direction of rotation shows


def test_rotation_pairs_each_half_with_the_other():
    arch = tiny_arch(head_dim=4, rope_theta=100.0)  # frequencies 1 and 0.1
    x = np.array([1.0, 2.0, 3.0, 4.0], np.float32).reshape(1, 1, 1, 4)
    got = np.asarray(rotate(x, rotary_table(np.array([[2]], np.int32), arch))).ravel()
    c, s = np.cos([2.0, 0.2]), np.sin([2.0, 0.2])
    want = [1 * c[0] - 3 * s[0], 2 * c[1] - 4 * s[1], 3 * c[0] + 1 * s[0], 4 * c[1] + 2 * s[1]]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_llama3_scaling_leaves_short_wavelengths_alone_and_divides_long_ones():
    arch = tiny_arch(head_dim=16, rope_theta=10000.0)
    scaled = tiny_arch(head_dim=16, rope_theta=10000.0, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 64))
    position = np.array([[1]], np.int32)
    angle, turned = (
        np.arctan2(*(np.asarray(x)[0, 0, :8] for x in rotary_table(position, a)[::-1])) for a in (arch, scaled)
    )
    turns = 64 * 10000.0 ** (-np.arange(8) / 8) / (2 * np.pi)  # over the original context: 10.2, 3.2, 1.02, 0.3, ...
    np.testing.assert_allclose(turned[turns > 4], angle[turns > 4], rtol=1e-5)
    np.testing.assert_allclose(turned[turns < 1], angle[turns < 1] / 8, rtol=1e-5)
    between = (turns > 1) & (turns < 4)
    assert between.sum() == 2 and ((turned < angle) & (turned > angle / 8))[between].all()
