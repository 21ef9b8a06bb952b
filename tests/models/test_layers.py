"""The pieces of a block: rotations by relative position, statistics in float32."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jit

from ssppo_jax.models import layers
from ssppo_jax.models.arch import LinearScaling, Llama3Scaling
from ssppo_jax.models.layers import RMSNorm, rotate

E = 8
rotary_table = jit(layers.rotary_table, static_argnums=(1, 2, 3))


@pytest.fixture
def normal():
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


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
    got = norm.apply(
        {"params": {"scale": np.full(4, 3.0, np.float32)}},
        np.array([[0.5, -0.5, 0.5, 0.5]], np.float32),
    )
    np.testing.assert_allclose(got, 3 * np.array([[0.5, -0.5, 0.5, 0.5]]) / np.sqrt(0.5), rtol=1e-6)


def test_rotated_dot_products_depend_on_relative_position_only(normal):
    q, k = normal(1, 1, 1, E), normal(1, 1, 1, E)

    def dot(i, j):
        at = [
            rotate(x, rotary_table(np.array([[p]], np.int32), E, 10000.0))
            for x, p in ((q, i), (k, j))
        ]
        return float(jnp.sum(at[0] * at[1]))

    np.testing.assert_allclose(dot(3, 1), dot(90, 88), rtol=1e-4)
    assert abs(dot(3, 1) - dot(1, 3)) > 1e-2  # the direction of rotation shows


def test_rotation_pairs_each_half_with_the_other():
    x = np.array([1.0, 2.0, 3.0, 4.0], np.float32).reshape(1, 1, 1, 4)
    table = rotary_table(np.array([[2]], np.int32), 4, 100.0)  # frequencies 1 and 0.1
    got = np.asarray(rotate(x, table)).ravel()
    c, s = np.cos([2.0, 0.2]), np.sin([2.0, 0.2])
    want = [1 * c[0] - 3 * s[0], 2 * c[1] - 4 * s[1], 3 * c[0] + 1 * s[0], 4 * c[1] + 2 * s[1]]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_llama3_scaling_leaves_short_wavelengths_alone_and_divides_long_ones():
    angle, turned = angles(), angles(Llama3Scaling(8.0, 1.0, 4.0, 64))
    # over the original context: 10.2, 3.2, 1.02, 0.3, ...
    turns = 64 * 10000.0 ** (-np.arange(8) / 8) / (2 * np.pi)
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


def test_gemma_multiplies_by_one_plus_the_scale_before_it_rounds(normal):
    x, scale = normal(2, 3, 16), np.float32(0.3) * normal(16)
    norm = RMSNorm(eps=1e-5, dtype=jnp.bfloat16, param_dtype=jnp.float32, plus_one=True)
    got = norm.apply({"params": {"scale": scale}}, jnp.asarray(x))
    wide = x.astype(np.float64)
    want = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * (1 + scale)
    np.testing.assert_array_equal(
        np.asarray(got, np.float32), np.asarray(jnp.asarray(want, jnp.bfloat16), np.float32)
    )
