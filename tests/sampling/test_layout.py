"""Sampling under a mesh, a weight dtype and a cache dtype of its own."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import configure

from ssppo_jax import schema
from ssppo_jax.config import CONFIGS
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.distributed.mesh import put_rows, sampling_mesh, sampling_shape, shard_bytes
from ssppo_jax.errors import ConfigError
from ssppo_jax.models.hf_config import arch_from_hf
from ssppo_jax.plan.hlo import collectives
from ssppo_jax.rollout.sample import sample_prompts, slots_for
from ssppo_jax.runtime import build_runtime, sampling_params
from ssppo_jax.sampling.slots import slot_of, slots_that_fit
from ssppo_jax.types import Prompt, Prompts

pytestmark = pytest.mark.usefixtures("own_cache")
SETTINGS = {
    "mesh__data": 1,
    "mesh__fsdp": 8,
    "mesh__tensor": 1,
    "sampling__max_new_tokens": 12,
    "sampling__num_samples": 2,
    "sampling__batch_size": 16,
}
OWN = (("sampling__mesh__data", 4), ("sampling__mesh__tensor", 2))
EIGHT_BITS = ("sampling__param_dtype", "int8")


@functools.cache
def runtime(*settings):
    return build_runtime(configure(**SETTINGS | dict(settings)))


def prompts(count=20):
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 60, count)
    return [
        EncodedPrompt(Prompt(str(i), ()), rng.integers(3, 250, n).astype(np.int32), i)
        for i, n in enumerate(lengths)
    ]


def sampler_of(made):
    return made.make_sampler(num_samples=2, sampling=sampling_params(made.config))


@functools.cache
def sample(*settings):
    made = runtime(*settings)
    return sample_prompts(
        made, sampler_of(made), made.load_params(), prompts(), jax.random.key(1)
    ).samples


def test_a_layout_of_its_own_gives_the_same_tokens():
    trained, own = sample(), sample(*OWN)
    np.testing.assert_array_equal(trained.tokens, own.tokens)
    np.testing.assert_allclose(trained.logp, own.logp, atol=1e-5)
    assert trained.length.min() < trained.length.max()


@functools.cache
def program(*settings):
    """Return the text of the decoding program, compiled for eight devices."""
    made = runtime(*settings)
    sampler, mesh = sampler_of(made), made.sampling_mesh
    params = made.for_sampling(made.load_params())
    batch = Prompts(np.ones((16, 8), np.int32), np.full(16, 8, np.int32), np.arange(16, dtype="u4"))
    slots = sampler.start(
        params, put_rows(mesh, batch), jax.random.key(0), put_rows(mesh, np.ones(16, bool))
    )
    return sampler.run.lower(params, slots, jnp.int32(16)).compile().as_text()


def gathered(*settings):
    """Return the bytes of what the decoding program gathers."""
    text = program(*settings)
    return {int(one.size) for one in collectives(text) if one.kind == "all-gather"}


def test_no_weight_is_gathered_in_the_decoding_loop():
    layers = jax.tree.leaves(runtime().abstract_params["layers"])
    weights = {int(np.prod(leaf.shape[1:])) for leaf in layers if leaf.ndim > 2}
    whole = {4 * size for size in weights}
    assert whole <= gathered()  # in the layout of training
    assert not whole & gathered(*OWN)
    small = gathered(*OWN, EIGHT_BITS)
    assert not (whole | weights) & small  # neither in 8 bits nor widened


def test_parameters_are_cast_and_cut_as_sampling_reads_them():
    made = runtime(*OWN, ("sampling__param_dtype", "bfloat16"))
    params = made.load_params()
    relaid = made.for_sampling(params)
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(relaid), strict=True):
        assert new.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(new), np.asarray(old.astype(jnp.bfloat16)))
    up = relaid["layers"]["mlp"]["up"]["kernel"]
    assert up.sharding.shard_shape(up.shape)[2] == up.shape[2] // 2
    both = made.for_sampling((params, params))
    assert jax.tree.structure(both) == jax.tree.structure((relaid, relaid))


def test_weights_in_8_bits_are_widened_a_layer_at_a_time():
    text = program(*OWN, EIGHT_BITS)
    layers = jax.tree.leaves(runtime(*OWN, EIGHT_BITS).abstract_sampling_params["layers"])
    for leaf in (leaf for leaf in layers if leaf.dtype == jnp.int8):
        shape = str(leaf.sharding.shard_shape(leaf.shape)).replace(" ", "")[1:-1]
        assert f"s8[{shape}]" in text
        assert f"f32[{shape}]" not in text and f"bf16[{shape}]" not in text


def test_weights_in_8_bits_are_a_quarter_for_the_count_of_slots_and_for_the_plan():
    made, exact = runtime(*OWN, EIGHT_BITS), runtime(*OWN)
    layers = [m.abstract_sampling_params["layers"] for m in (made, exact)]
    kernels = [
        sum(shard_bytes(x) for x in jax.tree.leaves(tree) if x.ndim > 2 and x.dtype != scale)
        for tree, scale in zip(layers, (jnp.float32, jnp.int8), strict=True)
    ]
    assert 4 * kernels[0] == kernels[1]
    assert shard_bytes(layers[0]) < 0.4 * shard_bytes(layers[1])  # scales and norms included


def test_without_settings_nothing_is_copied():
    made = runtime()
    params = made.load_params()
    assert made.for_sampling(params) is params and made.sampling_mesh == made.mesh


@pytest.mark.parametrize("key", ["param_dtype", "cache_dtype"])
def test_sixteen_bits_move_the_log_probs_by_their_rounding(key):
    exact, rounded = sample(), sample((f"sampling__{key}", "bfloat16"))
    same = (exact.tokens == rounded.tokens).cumprod(-1).astype(bool)
    gap = np.abs(exact.logp - rounded.logp)[same]
    assert 0 < gap.max() < 0.1 and same.mean() > 0.5


def test_the_kept_keys_have_their_dtype():
    made = runtime(("sampling__cache_dtype", "bfloat16"))
    sampler, params = sampler_of(made), made.load_params()
    batch = Prompts(np.ones((16, 8), np.int32), np.full(16, 8, np.int32), np.arange(16, dtype="u4"))
    slots = jax.eval_shape(sampler.start, params, batch, jax.random.key(0), np.ones(16, bool))
    assert {x.dtype for x in jax.tree.leaves((slots.shared, slots.own))} == {jnp.dtype("bfloat16")}


def test_shapes_of_the_sampling_mesh():
    assert sampling_shape((1, 2, 4, 1), {"data": 0, "tensor": 0}) == (1, 2, 4, 1)
    assert sampling_shape((2, 1, 4, 1), {"data": -1, "tensor": 2}) == (1, 4, 1, 2)
    with pytest.raises(ConfigError, match="set both sizes"):
        sampling_shape((1, 1, 8, 1), {"data": 0, "tensor": 2})
    with pytest.raises(ConfigError, match="this run has 8"):
        sampling_shape((1, 1, 8, 1), {"data": 3, "tensor": 2})
    mesh = runtime().mesh
    own = sampling_mesh(mesh, {"data": 2, "tensor": 4})
    assert list(own.devices.flat) == list(mesh.devices.flat)


def test_prompts_that_the_sampling_mesh_does_not_divide_are_refused():
    own = {"sampling__mesh__data": 8, "sampling__mesh__tensor": 1, "sampling__batch_size": 12}
    config = configure(**SETTINGS | {"mesh__fsdp": 4, "mesh__tensor": 2} | own)
    with pytest.raises(ConfigError, match="data x fsdp = 8 of the sampling mesh; try 16"):
        schema.check(config, 8)


def llama3_8b(tensor):
    arch = arch_from_hf(json.loads((CONFIGS / "models" / "llama3_8b.json").read_text()))
    return slot_of(arch, prompt=512, new=512, samples=5, tensor=tensor, itemsize=2)


def test_slots_of_llama_3_by_hand():
    slot = llama3_8b(tensor=4)
    assert slot.token == 2 * 8 / 4 * 128 * 2 * 32  # keys and values, heads, width, bytes, layers
    assert slot.cache == slot.token * (512 + 5 * 512)
    assert slot.logits == 5 * 128256 / 4 * 4
    assert slot.work == 4 * 32 / 4 * 512 * 512 * 4 + 2 * 512 * 4096 * 4  # scores and states
    each = slot.cache + 5 * slot.logits + slot.work
    room, held = 16e9, 16e9 * 0.9 - 3.5 * each  # three and a half slots are free
    assert slots_that_fit(slot, room=room, held=held, ways=4) == 12
    assert slots_that_fit(slot, room=room, held=held, ways=4, policies=2) == 8  # 2 of 256 MB
    with pytest.raises(ConfigError, match=r"need 0\.14 GiB of a device, and 0\.00 GiB are free"):
        slots_that_fit(slot, room=room, held=room, ways=4)


def test_a_batch_of_what_fits_gives_the_same_tokens(monkeypatch):
    made = runtime()
    held = made.beside_sampling + sum(x.nbytes for x in jax.tree.leaves(made.load_params())) / 8
    slot = made.slot(2)
    room = (held + 2.2 * (slot.cache + 5 * slot.logits + slot.work)) / 0.9
    monkeypatch.setattr("ssppo_jax.runtime.device_memory", lambda device: room)
    fits = build_runtime(configure(**SETTINGS | {"sampling__batch_size": 0}))
    sampler = sampler_of(fits)
    assert sampler.slots == 16
    found = sample_prompts(fits, sampler, fits.load_params(), prompts(), jax.random.key(1))
    np.testing.assert_array_equal(found.samples.tokens, sample().tokens)
    assert [slots_for(fits, 800, n) for n in (1, 20, 5000)] == [8, 24, 800]
    assert slots_for(made, 16, 1) == 16  # as configured
