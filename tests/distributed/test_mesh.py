"""Sharding rules are strict, parameters are really cut up, and sampling on a mesh is sampling on
one device."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from tiny import ARCHES, EOS, PAD, PARAMS, generator, jit, make_prompts, random_params

from ssppo_jax.distributed import mesh as parallel
from ssppo_jax.distributed.mesh import (
    DECODER_RULES,
    Constrain,
    host_copy,
    make_mesh,
    mesh_shape,
    put_rows,
    shardings,
    specs,
)
from ssppo_jax.errors import ConfigError
from ssppo_jax.models.arch import tiny_arch
from ssppo_jax.models.decoder import Decoder, init_params
from ssppo_jax.models.int8 import quantized
from ssppo_jax.models.lora import Lora
from ssppo_jax.optimizer import OPTIMIZERS, make_optimizer
from ssppo_jax.sampling.choose import SamplingParams
from ssppo_jax.sampling.sampler import make_generate
from ssppo_jax.steps import fresh_optimizer, fresh_state
from ssppo_jax.weights import hf


@pytest.fixture(scope="module")
def mesh():
    return make_mesh((2, 2, 2))


# ---- rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHES)
def test_every_parameter_matches_exactly_one_rule(name):
    for path, leaf in hf.flatten(PARAMS[name]):
        matching = [spec for pattern, spec in DECODER_RULES if re.search(pattern, path)]
        assert len(matching) == 1, path
        assert len(matching[0]) <= leaf.ndim, path


def test_rules_without_a_leaf_are_not_kept():
    adapted = jax.eval_shape(
        lambda: init_params(Decoder(ARCHES["tied"], lora=Lora(2, 2.0)), jax.random.key(0))
    )
    eight_bits = jax.eval_shape(lambda: quantized(PARAMS["tied"], np.float32))
    trees = [*PARAMS.values(), random_params(tiny_arch(num_labels=1)), adapted, eight_bits]
    paths = {path for tree in trees for path, _ in hf.flatten(tree)}
    for pattern, _ in DECODER_RULES:
        assert any(re.search(pattern, path) for path in paths), pattern


def test_leaves_no_rule_matches_are_all_named():
    tree = {
        "layers": {"mystery": np.zeros((2, 2)), "attn": {"q": {"kernel": np.zeros((2, 2, 2, 2))}}},
        "odd": np.zeros(3),
    }
    with pytest.raises(ConfigError, match=r"layers/mystery.*odd.*rules"):
        specs(tree)


def test_dimensions_the_mesh_does_not_divide_are_all_named(mesh):
    tree = {
        "layers": {"attn": {"k": {"kernel": np.zeros((2, 4, 3, 8))}}},
        "head": {"kernel": np.zeros((5, 4))},
    }
    with pytest.raises(ConfigError) as error:
        shardings(mesh, tree)
    for part in (
        "layers/attn/k/kernel (2, 4, 3, 8)",
        "axis 2",
        "tensor=2",
        "head/kernel (5, 4)",
        "axis 0",
        "fsdp=2",
    ):
        assert part in str(error.value)


def test_optimizer_moments_are_cut_like_their_parameters_and_scalars_are_whole(mesh):
    optimizer = make_optimizer(OPTIMIZERS["adamw"](), 0.1, max_grad_norm=1.0)
    state = fresh_optimizer(
        mesh, jax.device_put(PARAMS["tied"], shardings(mesh, PARAMS["tied"])), optimizer
    )
    cut = specs(PARAMS["tied"])
    adam = next(
        s for s in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(s, "mu")
    )
    for moments in (adam.mu, adam.nu):
        jax.tree.map(lambda x, spec: _is_cut(x, spec, mesh), moments, cut)
    assert adam.count.sharding.is_fully_replicated


@pytest.mark.parametrize(
    "sizes, want",
    [
        ((1, 1, -1, 1), (1, 1, 8, 1)),
        ((1, -1, 2, 2), (1, 2, 2, 2)),
        ((-1, 1, 2, 2), (2, 1, 2, 2)),
        ((1, 2, 2, 2), (1, 2, 2, 2)),
        ((1, 8, 1, -1), (1, 8, 1, 1)),
    ],
)
def test_one_mesh_size_is_filled_in(sizes, want):
    assert mesh_shape(dict(zip(parallel.AXES, sizes, strict=True)), 8) == want


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 1),
        (1, 3, -1, 1),
        (1, -1, -1, 1),
        (1, 0, 8, 1),
        (1, -2, 4, 1),
        (1, 4, 4, 1),
        (2, 8, 1, 1),
    ],
)
def test_mesh_sizes_that_do_not_fit_the_devices_are_refused(sizes):
    with pytest.raises(ConfigError, match="mesh"):
        mesh_shape(dict(zip(parallel.AXES, sizes, strict=True)), 8)


def test_only_replicas_span_slices():
    slices = [SimpleNamespace(slice_index=i // 4) for i in range(8)]
    with pytest.raises(ConfigError, match=r"mesh\.replica=1: .* 2 slices, .* set mesh\.replica=2"):
        make_mesh((1, 8, 1), slices)


# ---- placement -----------------------------------------------------------------------------------


def _is_cut(x, spec, mesh):
    ways = [1 if name is None else mesh.shape[name] for name in spec]
    ways += [1] * (x.ndim - len(ways))
    assert x.addressable_shards[0].data.shape == tuple(
        n // w for n, w in zip(x.shape, ways, strict=True)
    )


def test_parameters_hold_only_their_part_on_each_device(mesh):
    state = fresh_state(
        mesh, jax.device_put(PARAMS["tied"], shardings(mesh, PARAMS["tied"])), optax.sgd(0.1)
    )
    shapes = {path: x.addressable_shards[0].data.shape for path, x in hf.flatten(state.params)}
    assert shapes["embed/embedding"] == (48, 16)  # of (96, 32)
    assert shapes["layers/attn/q/kernel"] == (2, 16, 2, 8)  # of (2, 32, 4, 8)
    assert shapes["layers/attn/o/kernel"] == (2, 2, 8, 16)  # of (2, 4, 8, 32)
    assert shapes["layers/mlp/gate/kernel"] == (2, 16, 32)  # of (2, 32, 64)
    assert shapes["layers/mlp/down/kernel"] == (2, 32, 16)  # of (2, 64, 32)


def test_rows_are_split_over_data_and_fsdp_and_not_over_tensor(mesh):
    rows = put_rows(mesh, np.arange(24).reshape(3, 8), axis=1)
    assert rows.sharding.spec == P(None, ("replica", "data", "fsdp"))
    np.testing.assert_array_equal(rows, np.arange(24).reshape(3, 8))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(3, 2)}


def test_micro_batches_are_consecutive_rows(mesh):
    cut = parallel.put_micro_batches(mesh, np.arange(16), 2)
    np.testing.assert_array_equal(cut, [range(8), range(8, 16)])
    assert cut.sharding.spec == P(None, ("replica", "data", "fsdp"))


def test_a_mesh_of_one_device_constrains_nothing():
    x = np.zeros((2, 3))
    assert Constrain(make_mesh((1, 1, 1), jax.devices()[:1]))(x, "no such kind") is x


# ---- sampling on a mesh --------------------------------------------------------------------------


def test_samples_do_not_depend_on_the_mesh(mesh):
    sampling = SamplingParams(temperature=1.2, top_p=0.9, max_new_tokens=8)
    prompts, key = make_prompts((5, 1, 9, 3, 2, 9, 4, 7), 9), jax.random.key(0)
    decoder = Decoder(ARCHES["tied"], constrain=Constrain(mesh))
    generate = jit(
        make_generate(decoder, num_samples=2, eos_ids=EOS, pad_id=PAD, sampling=sampling)
    )
    params = jax.device_put(PARAMS["tied"], shardings(mesh, PARAMS["tied"]))
    generate = generate.lower(params, put_rows(mesh, prompts), key).compile()
    there = generate(params, put_rows(mesh, prompts), key)
    here = generator(2, sampling)(prompts, key)
    np.testing.assert_array_equal(there.tokens, here.tokens)
    np.testing.assert_array_equal(there.length, here.length)
    np.testing.assert_allclose(there.logp, here.logp, atol=1e-5)
    np.testing.assert_allclose(there.sampling_logp, here.sampling_logp, atol=1e-5)
    assert len(np.unique(here.length)) > 2
    # no device holds the states or logits of all prompts
    assert not re.search(r"f32\[8,(9,32|2,96|2,48)[\],]", generate.as_text())


def test_a_copy_on_the_host_comes_back_where_it_was_and_outlives_the_original():
    mesh = make_mesh((2, 2, 2))
    values = np.arange(32, dtype=np.float32).reshape(4, 8)
    specs = {"cut": P("fsdp", "tensor"), "whole": P()}
    tree = {
        name: jax.device_put(values.astype(jnp.bfloat16), jax.NamedSharding(mesh, spec))
        for name, spec in specs.items()
    }
    shardings = jax.tree.map(lambda x: x.sharding, tree)
    restore = host_copy(tree)
    jax.tree.map(lambda x: x.delete(), tree)
    for _ in range(2):
        again = restore()
        assert jax.tree.map(lambda x: x.sharding, again) == shardings
        for found in again.values():
            assert found.dtype == jnp.bfloat16
            np.testing.assert_array_equal(np.asarray(found, np.float32), values)
