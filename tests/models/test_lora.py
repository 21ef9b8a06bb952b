"""Adapters: what they add, that they start as nothing, and that only they are trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import ARCHES, PARAMS, V, jit, make_prompts, mask_of, random_adapters

from ssppo_jax.distributed.mesh import make_mesh, shardings
from ssppo_jax.models.decoder import Decoder, init_params
from ssppo_jax.models.lora import Lora, join, merged, split
from ssppo_jax.models.policy import make_apply
from ssppo_jax.steps import make_train_step
from ssppo_jax.types import Batch, Mean, TrainState
from ssppo_jax.weights import hf

LORA = Lora(rank=3, alpha=6.0)
PROMPTS = make_prompts((5, 2), 6)
LENGTH = np.array([[4, 2], [3, 4]])
MASK = mask_of(LENGTH, 4)
TOKENS = np.random.default_rng(1).integers(1, V, MASK.shape).astype(np.int32)


def adapters_of(name, lora=LORA):
    return random_adapters(ARCHES[name], lora)


@functools.cache
def compiled(name, lora):
    apply = make_apply(Decoder(ARCHES[name], lora=lora), logprob_chunk=4)
    return jit(lambda p: apply(p, *PROMPTS[:2], TOKENS, MASK)[0].logp)


def logp(name, params, lora=None):
    return compiled(name, lora)(params)


@pytest.mark.parametrize("name", ARCHES)
def test_a_model_with_adapters_is_the_model_with_them_merged(name):
    whole = join(PARAMS[name], adapters_of(name))
    with_adapters = logp(name, whole, LORA)
    np.testing.assert_allclose(with_adapters, logp(name, merged(whole, LORA.scale)), atol=2e-5)
    assert np.abs(with_adapters - logp(name, PARAMS[name])).max() > 0.05


def test_every_target_adds_its_own_share():
    """Each projection alone changes the model, and merging agrees for each: none is left out or
    applied twice."""
    for target in ("attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up", "mlp/down"):
        lora = dataclasses.replace(LORA, targets=target)
        adapters = adapters_of("qwen3", lora)
        assert {path.rpartition("/")[0] for path, _ in hf.flatten(adapters)} == {f"layers/{target}"}
        whole = join(PARAMS["qwen3"], adapters)
        got = logp("qwen3", whole, lora)
        np.testing.assert_allclose(got, logp("qwen3", merged(whole, lora.scale)), atol=2e-5)
        assert np.abs(got - logp("qwen3", PARAMS["qwen3"])).max() > 1e-3


def test_fresh_adapters_change_nothing_and_a_is_pefts():
    fresh = split(init_params(Decoder(ARCHES["tied"], lora=LORA), jax.random.key(3)))[1]
    np.testing.assert_array_equal(
        logp("tied", join(PARAMS["tied"], fresh), LORA), logp("tied", PARAMS["tied"])
    )
    a = np.asarray(fresh["layers"]["mlp"]["down"]["lora_a"])  # inside 64
    bound = 64**-0.5
    assert 0.9 * bound < np.abs(a).max() <= bound and a.std() > 0.5 * bound
    assert not np.array_equal(a[0], a[1])
    assert all(not np.any(leaf) for path, leaf in hf.flatten(fresh) if path.endswith("lora_b"))


def test_the_scale_is_alpha_over_rank():
    whole = join(PARAMS["tied"], adapters_of("tied"))
    twice = dataclasses.replace(LORA, alpha=12.0)
    doubled = jax.tree.map(lambda x: x, whole)
    doubled["layers"] = jax.tree_util.tree_map_with_path(
        lambda path, x: 2 * x if path[-1].key == "lora_b" else x, whole["layers"]
    )
    np.testing.assert_allclose(logp("tied", whole, twice), logp("tied", doubled, LORA), atol=1e-5)


def test_parting_and_joining_lose_nothing_and_copy_nothing():
    whole = join(PARAMS["qwen2"], adapters_of("qwen2"))
    own, adapters = split(whole)
    assert dict(hf.flatten(own)).keys() == dict(hf.flatten(PARAMS["qwen2"])).keys()
    again = dict(hf.flatten(join(own, adapters)))
    assert again.keys() == dict(hf.flatten(whole)).keys()
    assert all(again[path] is leaf for path, leaf in hf.flatten(whole))
    assert split(own) == (own, {}) and join(None, own) is own


def batch():
    empty = {name: np.zeros(MASK.shape, np.float32) for name in Batch._fields}
    fields = {
        "prompt": PROMPTS.tokens,
        "prompt_length": PROMPTS.length,
        "completion": TOKENS,
        "mask": MASK,
    }
    made = Batch(**(empty | fields | {"weight": np.ones(2, np.float32)}))
    return jax.tree.map(lambda x: jnp.asarray(x)[None], made)


def loss(policy, batch):
    return Mean(-jnp.sum(policy.logp * batch.mask), jnp.sum(batch.mask)), {}


ADAM = optax.adam(1e-2)


@functools.cache
def compiled_step(lora, seed):
    key = None if seed is None else jax.random.key(seed)
    apply = make_apply(Decoder(ARCHES["tied"], lora=lora), logprob_chunk=4)
    return jit(make_train_step(apply, loss, lambda policy, batch: {}, ADAM, dropout_key=key))


def stepped(lora, adapters, steps=1, seed=None):
    step = compiled_step(lora, seed)
    state = TrainState(adapters, ADAM.init(adapters), jnp.int32(0))
    for _ in range(steps):
        state, metrics = step(state, batch(), PARAMS["tied"])
    return state, metrics


def test_a_step_trains_the_adapters_alone_with_the_gradient_of_the_whole():
    adapters = adapters_of("tied")
    state, metrics = stepped(LORA, adapters)
    assert dict(hf.flatten(state.params)).keys() == dict(hf.flatten(adapters)).keys()
    assert {leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim} == {
        leaf.size for leaf in jax.tree.leaves(adapters)
    }
    apply = make_apply(Decoder(ARCHES["tied"], lora=LORA), logprob_chunk=4)

    def value(params):
        return -jnp.sum(apply(params, *PROMPTS[:2], TOKENS, MASK)[0].logp * MASK) / MASK.sum()

    gradient = split(jit(jax.grad(value))(join(PARAMS["tied"], adapters)))[1]
    np.testing.assert_allclose(metrics["grad_norm"].result(), optax.tree.norm(gradient), rtol=1e-4)
    trained, _ = stepped(LORA, adapters, steps=20)
    before, after = (
        np.sum(logp("tied", join(PARAMS["tied"], a), LORA) * MASK)
        for a in (adapters, trained.params)
    )
    assert after > before + 5


def test_dropout_is_for_training_and_anew_in_every_step():
    lora = dataclasses.replace(LORA, dropout=0.5)
    adapters = adapters_of("tied")
    plain = stepped(lora, adapters)[1]["loss"].result()
    np.testing.assert_allclose(plain, stepped(LORA, adapters)[1]["loss"].result(), rtol=1e-6)
    dropped = stepped(lora, adapters, seed=5)[1]["loss"].result()
    assert abs(dropped - plain) > 1e-3
    assert stepped(lora, adapters, seed=5)[1]["loss"].result() == dropped
    assert stepped(lora, adapters, seed=6)[1]["loss"].result() != dropped


def test_dropout_differs_from_step_to_step_and_between_micro_batches():
    lora, adapters = dataclasses.replace(LORA, dropout=0.5), adapters_of("tied")
    apply = make_apply(Decoder(ARCHES["tied"], lora=lora), logprob_chunk=4)
    still = optax.sgd(0.0)
    key = jax.random.key(5)
    step = jit(make_train_step(apply, loss, lambda policy, batch: {}, still, dropout_key=key))
    state, found = TrainState(adapters, still.init(adapters), jnp.int32(0)), []
    for _ in range(3):
        state, metrics = step(state, batch(), PARAMS["tied"])
        found.append(float(metrics["loss"].result()))
    assert len(set(found)) == 3
    # the same micro-batch at places 0 and 1
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch())
    fresh = TrainState(adapters, still.init(adapters), jnp.int32(0))
    both = step(fresh, twice, PARAMS["tied"])[1]["loss"].result()
    np.testing.assert_allclose(both, (found[0] + found[1]) / 2, rtol=1e-5)


def test_dropout_keeps_the_mean_of_what_an_adapter_adds():
    lora = dataclasses.replace(LORA, dropout=0.5)
    # where the model is near linear
    small = join(PARAMS["tied"], jax.tree.map(lambda x: 0.2 * x, adapters_of("tied")))
    apply = make_apply(Decoder(ARCHES["tied"], lora=lora), logprob_chunk=4)
    many = jit(
        jax.vmap(lambda key: apply(small, *PROMPTS[:2], TOKENS, MASK, dropout_key=key)[0].logp)
    )
    whole = np.asarray(logp("tied", small, lora))
    dropped = np.asarray(many(jax.random.split(jax.random.key(0), 128)))
    added = np.abs(whole - logp("tied", PARAMS["tied"])).mean()
    assert np.abs(np.mean(dropped, 0) - whole).mean() < 0.2 * added < np.abs(dropped - whole).mean()


def test_adapters_are_cut_over_a_mesh_like_what_they_stand_beside():
    mesh = make_mesh((2, 2, 2))
    tree = join(PARAMS["qwen2"], adapters_of("qwen2", Lora(rank=4, alpha=4.0)))
    cut = dict(hf.flatten(shardings(mesh, tree)))
    for path in cut:
        if path.endswith(("lora_a", "lora_b")):
            assert any(cut[path].spec), path
    placed = jax.device_put(tree, shardings(mesh, tree))
    lora = Lora(rank=4, alpha=4.0)
    np.testing.assert_allclose(logp("qwen2", placed, lora), logp("qwen2", tree, lora), atol=1e-5)
