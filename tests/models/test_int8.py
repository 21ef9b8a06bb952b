"""Weights in 8 bits: how far they are rounded, and the forward of weights so rounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ARCHES, PARAMS, jit, make_prompts, random_adapters

from ssppo_jax.models.decoder import Decoder
from ssppo_jax.models.int8 import INPUTS, SCALE, quantize, quantized
from ssppo_jax.models.lora import Lora, join


def test_each_output_channel_is_rounded_to_half_of_its_own_scale():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 7, 3, 5)) * np.exp(rng.normal(size=(2, 1, 3, 5)))
    kernel[1, :, 2, 4] = 0
    q, scale = quantize(kernel, (1,))
    assert q.dtype == jnp.int8 and q.shape == kernel.shape and scale.shape == (2, 3, 5)
    q, scale = np.asarray(q, np.float64), np.asarray(scale, np.float64)
    largest = np.abs(kernel).max(1)
    np.testing.assert_allclose(scale, np.where(largest, largest / 127, 1), rtol=1e-6)
    assert (np.abs(scale[:, None] * q - kernel) <= scale[:, None] * (0.5 + 1e-5)).all()
    assert (np.abs(q).max(1) == np.where(largest, 127, 0)).all()
    merged, sums = quantize(np.moveaxis(kernel, 3, 1), (1, 2))  # two axes that are summed over
    assert sums.shape == (2, 3) and np.abs(merged).max() == 127


def widened(params):
    """Parameters whose kernels are scale * Q, written out."""
    if not isinstance(params, dict):
        return np.asarray(params)
    out = {key: widened(value) for key, value in params.items()}
    if SCALE in out:
        scale, kernel = out.pop(SCALE), out["kernel"]
        inside = kernel.ndim - scale.ndim
        out["kernel"] = kernel * scale.reshape(scale.shape[0], *(1,) * inside, *scale.shape[1:])
    return out


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_the_forward_is_that_of_the_rounded_weights(name):
    arch, lora = ARCHES[name], Lora(rank=2, alpha=4.0)
    decoder, prompts = Decoder(arch, lora=lora), make_prompts((5, 3), 6)
    params = join(PARAMS[name], random_adapters(arch, lora))
    small = quantized(params, jnp.float32)
    forward = jit(lambda p: decoder.apply({"params": p}, prompts.tokens, prompts.length).prompt)
    found, want, exact = forward(small), forward(widened(small)), forward(params)
    np.testing.assert_allclose(found, want, atol=2e-5)
    assert 1e-3 < np.abs(found - exact).max() < 0.5


def test_only_the_layers_kernels_are_quantised():
    small = quantized(
        join(PARAMS["qwen2"], random_adapters(ARCHES["qwen2"], Lora(2, 4.0))), "bfloat16"
    )
    kinds = {
        "/".join(str(key.key) for key in path): str(leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(small)
    }
    layers = {path for path in kinds if path.startswith("layers")}
    assert {path for path in kinds if kinds[path] == "int8"} == {
        path for path in layers if path.endswith("/kernel")
    }
    scales = {path for path in layers if path.endswith(SCALE)}
    assert {kinds[path] for path in scales} == {"float32"} and len(scales) == 7
    assert {kinds[path] for path in set(kinds) - scales} == {"int8", "bfloat16"}
    assert set(INPUTS) <= {path.split("/")[2] for path in scales}
