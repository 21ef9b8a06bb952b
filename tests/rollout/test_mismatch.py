"""The gate between sampler and trainer: bounds by hand, quiet for rounding, loud for faults."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ARCHES, PARAMS, jit, make_prompts, mask_of

from ssppo_jax.errors import GateError
from ssppo_jax.models.decoder import Decoder
from ssppo_jax.models.int8 import quantized
from ssppo_jax.models.policy import make_apply
from ssppo_jax.rollout.mismatch import Mismatch, bounds_of, check, mismatch_of, noise
from ssppo_jax.sampling.choose import SamplingParams
from ssppo_jax.sampling.sampler import make_generate

SAME = {"compute": "float32", "weights": "float32", "sampled": "float32", "cache": "float32"}


def explained(layers=2, platform="cpu", width=64, **dtypes):
    return noise(layers, width, platform=platform, **(SAME | dtypes))


def test_the_noise_by_hand():
    exact = 32 * 2.0**-24  # of the float32 logits
    assert explained() == pytest.approx(3 * 2.0**-24 * np.sqrt(2 * (2 + 4 / 3) + 6 * 64) + exact)
    assert explained(temperature=0.5) == 2 * explained()
    assert explained(width=512) / explained() == pytest.approx(np.sqrt(8), rel=0.4)
    half = {"compute": "bfloat16", "cache": "bfloat16"}
    bfloat16 = 3 * 2.0**-8 * np.sqrt(2 * (2 + 64 / 3))
    assert explained(32, **half) == pytest.approx(bfloat16 + exact)
    eight = 3 * np.sqrt((bfloat16 / 3) ** 2 + 3 * (9 / 254) ** 2)
    assert explained(32, **half, sampled="int8") == pytest.approx(eight + exact)
    assert explained(sampled="bfloat16") == pytest.approx(3 / 256 * np.sqrt(3), rel=1e-3)
    assert explained(cache="bfloat16") == pytest.approx(3 / 256 * np.sqrt(2), rel=1e-3)


def test_weights_that_are_rounded_before_use_anyway_explain_nothing_more():
    half = {"compute": "bfloat16", "cache": "bfloat16"}
    assert explained(**half, sampled="bfloat16") == explained(**half)
    assert explained(weights="bfloat16", sampled="bfloat16") == explained()
    assert explained(weights="bfloat16", sampled="float32") == explained()


def test_float32_products_are_those_of_the_platform():
    inputs = explained(compute="bfloat16", cache="bfloat16")
    assert explained(platform="tpu") == pytest.approx(inputs)
    assert explained() < explained(platform="gpu") < inputs / 7
    assert explained(compute="bfloat16", cache="bfloat16", platform="gpu") == inputs


def test_the_three_numbers():
    d = np.random.default_rng(0).normal(size=10_001) * 0.01
    found = mismatch_of(d.astype(np.float32))
    size = np.sort(np.abs(d))
    assert found.median == pytest.approx(size[5000], rel=1e-5)
    assert found.p999 == pytest.approx(size[9990], rel=1e-5)
    assert found.ratio == pytest.approx(abs(np.exp(d).mean() - 1), rel=1e-2)
    assert mismatch_of(np.zeros(0)) == Mismatch(0.0, 0.0, 0.0)
    assert np.isfinite(mismatch_of(np.array([1e9])).ratio)


def test_any_two_policies_have_the_mean_1_where_the_tokens_are_the_samplers():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(8)), rng.dirichlet(np.ones(8))
    drawn = np.random.default_rng(1).choice(8, 200_000, p=q)
    assert mismatch_of(np.log(p / q)[drawn]).ratio < 0.05
    other = np.random.default_rng(1).choice(8, 200_000, p=p)
    assert mismatch_of(np.log(p / q)[other]).ratio > 0.5


def test_what_is_above_its_bound_is_named():
    bounds = bounds_of(0.1)
    check(bounds, bounds, "float32")
    with pytest.raises(GateError) as error:
        check(Mismatch(0.2, 0.3, np.nan), bounds, "float32")
    assert bounds.p999 == pytest.approx(0.7)
    assert "median |d| is 0.2, allowed 0.067" in str(error.value)
    assert "mean of exp(d) - 1| is nan" in str(error.value) and "percentile" not in str(error.value)
    assert "train.sampler_bound=2" in str(error.value)


# ---- tiny models ---------------------------------------------------------------------------------

ARCH, OWN = ARCHES["llama3"], PARAMS["llama3"]
K, T = 4, 12
CASES = [("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "int8")]
SWAPPED = OWN | {"layers": jax.tree.map(lambda x: x[::-1], OWN["layers"])}
HOTTER = OWN | {"norm": {"scale": OWN["norm"]["scale"] / 0.8}}  # logits over temperature 0.8


@functools.cache
def sampled(dtype, weights):
    """Prompts, samples, and the trainer's log-probs as a function of parameters and lengths."""
    prompts = make_prompts(list(np.random.default_rng(0).integers(3, 9, 96)), 10)
    decoder = Decoder(ARCH, dtype=jnp.dtype(dtype))
    params = quantized(OWN, dtype) if weights == "int8" else OWN
    settings = {"num_samples": K, "eos_ids": (2,), "pad_id": 0}
    generate = jit(make_generate(decoder, sampling=SamplingParams(max_new_tokens=T), **settings))
    samples = jax.device_get(generate(params, prompts, jax.random.key(0)))
    mask, apply = mask_of(samples.length, T), make_apply(decoder, logprob_chunk=32)
    score = jit(lambda params, length: apply(params, prompts.tokens, length, samples.tokens, mask))
    return prompts, samples, mask > 0, lambda *args: np.asarray(score(*args)[0].logp)


def gate(dtype, weights, params, longer=0):
    prompts, samples, real, score = sampled(dtype, weights)
    logp = score(params, prompts.length + longer)
    dtypes = {"compute": dtype, "weights": "float32", "sampled": weights, "cache": dtype}
    bounds = bounds_of(noise(ARCH.num_layers, ARCH.mlp_dim, platform="cpu", **dtypes))
    found = mismatch_of((logp - samples.logp)[real])
    return SimpleNamespace(found=found, bounds=bounds, check=lambda: check(found, bounds, dtype))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_rounding_passes_with_room(case):
    made = gate(*case, OWN)
    made.check()
    assert made.found.median > made.bounds.median / 50  # and the bound is no free pass


FAULTS = {
    "layers swapped": {"params": SWAPPED},
    "another temperature": {"params": HOTTER},
    "positions shifted": {"params": OWN, "longer": 1},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_fault_does_not_pass_as_rounding(case, fault):
    with pytest.raises(GateError, match="by more than rounding explains"):
        gate(*case, **FAULTS[fault]).check()
