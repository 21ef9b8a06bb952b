"""Rows cut by length or packed into streams: the log-probs, states, loss and gradient of whole
rows."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import ARCHES, PARAMS, V, jit, make_prompts, mask_of

from ssppo_jax import steps
from ssppo_jax.data import Cut, MicroBatch
from ssppo_jax.distributed.mesh import Constrain, make_mesh, put_whole, shardings
from ssppo_jax.losses.core import ratio_stats
from ssppo_jax.losses.group import LOSSES as GROUP_LOSSES
from ssppo_jax.losses.preference import LOSSES
from ssppo_jax.models.decoder import Decoder
from ssppo_jax.models.policy import make_apply
from ssppo_jax.rollout.store import take_micro_batch
from ssppo_jax.training.train import lay
from ssppo_jax.types import Batch, TrainState

B, PROMPT, T, CHUNK = 10, 6, 12, 6
PROMPTS = (5, 1, 6, 3, 2, 6, 4, 2, 3, 1)
PAIR = functools.partial(LOSSES["s_sppo"], beta=0.2, repulsion_weight=3.0)
# Its loss is divided by T, which no cut of the completions may change.
GROUP = functools.partial(GROUP_LOSSES["dr_grpo"], beta=0.1)


def make_batch(k):
    """Ten rows with completions of 1 to T tokens. Of a group's, one is masked, as if it was cut."""
    rng = np.random.default_rng(k)
    own = rng.integers(1, T // 2, (B, k))
    own[3, 1], own[-1, 0] = T, 2 if k == 2 else 0
    mask, prompts = mask_of(own, T), make_prompts(PROMPTS, PROMPT)

    def normal(*shape, mean=0.0):
        return (mean + rng.standard_normal(shape)).astype(np.float32)

    return Batch(
        prompt=prompts.tokens,
        prompt_length=prompts.length,
        completion=rng.integers(1, V, mask.shape).astype(np.int32),
        mask=mask,
        **{name: normal(B, k, T, mean=-4.5) for name in ("old_logp", "ref_logp", "init_logp")},
        **{name: normal(B, k) for name in ("win_rate", "target", "advantage")},
        **{name: normal(B) for name in ("p_win", "similarity")},
        weight=np.ones(B, np.float32),
    )


def cut_of(ways, **settings):
    return Cut(size=B, ways=ways, prompt_buckets=(3, PROMPT), completion_buckets=(4, T), **settings)


def remember():
    """An optimizer that moves nothing and keeps the gradient as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda gradient, state, params: (jax.tree.map(jnp.zeros_like, gradient), gradient),
    )


def decoder(name="tied", mesh=None):
    own = {} if mesh is None else {"constrain": Constrain(mesh)}
    return Decoder(ARCHES[name], **own)


@functools.cache
def whole(k, loss):
    """The gradient and metrics of the rows as they are."""
    apply = make_apply(decoder(), logprob_chunk=CHUNK)
    step = jit(steps.make_train_step(apply, loss, ratio_stats, remember()))
    state = TrainState(PARAMS["tied"], PARAMS["tied"], np.int32(0))
    return step(state, jax.tree.map(lambda x: x[None], make_batch(k)))


def laid_step(monkeypatch, batch, loss, cut, shape):
    """Take a step on micro-batches of the rows, on a mesh."""
    monkeypatch.setattr(jax, "jit", jit)
    mesh = make_mesh(shape, jax.devices()[: math.prod(shape)])
    params = jax.device_put(PARAMS["tied"], shardings(mesh, PARAMS["tied"]))
    apply = make_apply(decoder(mesh=mesh), logprob_chunk=CHUNK)
    laid = lay(mesh, batch, np.arange(B), cut)
    step = steps.LaidStep(
        steps.make_gradient(apply, loss, ratio_stats),
        steps.make_update(remember()),
        most=B,
        params=params,
    )
    state = TrainState(params, jax.tree.map(jnp.copy, params), put_whole(mesh, np.int32(0)))
    with jax.transfer_guard("disallow"):
        return (
            *step(state, laid, None, None, put_whole(mesh, np.bool_(False))),
            [x.slots for x in laid],
        )


@pytest.mark.parametrize(
    ("k", "loss", "shape", "settings"),
    [
        (2, PAIR, (2, 2, 2), {"max_token_len": 22, "padding_free": True}),
        (3, GROUP, (1, 1, 1), {"max_token_len": 60, "padding_free": True}),
        (3, GROUP, (2, 1, 1), {"max_token_len": 48}),
    ],
    ids=["packed pairs on a mesh", "packed groups", "padded groups"],
)
def test_a_step_is_that_of_whole_rows(monkeypatch, k, loss, shape, settings):
    batch, cut = make_batch(k), cut_of(shape[0] * shape[1], **settings)
    state, metrics, slots = laid_step(monkeypatch, batch, loss, cut, shape)
    want, expected = whole(k, loss)
    assert set(slots) == {4, T} or settings.get("padding_free")
    assert len(slots) > 1
    norm = optax.tree.norm(want.opt_state)
    for (path, got), wanted in zip(
        jax.tree_util.tree_leaves_with_path(state.opt_state),
        jax.tree.leaves(want.opt_state),
        strict=True,
    ):
        np.testing.assert_allclose(
            got, wanted, atol=1e-6 * norm, rtol=0, err_msg=jax.tree_util.keystr(path)
        )
    assert metrics.keys() == expected.keys()
    for name, metric in metrics.items():
        np.testing.assert_allclose(
            metric.result(), expected[name].result(), rtol=1e-5, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])  # windows, soft caps, two rotary bases
def test_packed_rows_are_scored_as_whole_ones(name):
    """Log-probs, entropies and a block's states, pooled over the response; rubbish in padding."""
    batch, cut = make_batch(2), cut_of(1)
    rows = np.array([7, 0, -1, 2, 9, 1])
    own = batch.mask[rows].sum(2) * (rows >= 0)[:, None]
    micro = MicroBatch(rows, PROMPT, int(own.max()), 60)
    assert micro.completion < T and batch.prompt_length[rows].sum() + own.sum() < 60
    part, packing = take_micro_batch(batch, micro, cut)
    pooled = {"repulsion_pooling": "mean_response", "repulsion_layer": "0"}
    apply = make_apply(decoder(name), logprob_chunk=CHUNK, **pooled)
    score = jit(functools.partial(apply, entropy=True), static_argnames="slots")
    fields = (part.prompt, part.prompt_length, part.completion, part.mask)
    packed, entropy = score(PARAMS[name], *fields, slots=micro.completion, packing=packing)
    policy, other = score(PARAMS[name], *fields)
    real = part.mask > 0
    assert real.sum() == own.sum()
    for got, want in ((packed.logp, policy.logp), (entropy, other)):
        np.testing.assert_allclose(got[real], np.asarray(want)[real], atol=2e-6)
        assert not np.asarray(got)[~real].any()
    np.testing.assert_allclose(packed.hidden, policy.hidden, atol=2e-6)
