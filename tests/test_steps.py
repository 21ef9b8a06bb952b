"""The train step: one gradient whatever the mesh and the micro-batches, divided once, and watched
while it is taken."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import ARCHES, PAD, PARAMS, V, jit, make_prompts, mask_of, scorer

from ssppo_jax.distributed.mesh import (
    Constrain,
    abstract,
    make_mesh,
    put_rows,
    shard_bytes,
    shardings,
)
from ssppo_jax.losses.core import ratio_stats
from ssppo_jax.losses.group import LOSSES as GROUP_LOSSES
from ssppo_jax.losses.preference import LOSSES
from ssppo_jax.models.decoder import Decoder
from ssppo_jax.models.policy import make_apply
from ssppo_jax.optimizer import OPTIMIZERS, make_optimizer, with_master
from ssppo_jax.plan.hlo import collectives
from ssppo_jax.steps import (
    abstract_state,
    fresh_state,
    make_score_step,
    make_term_norms,
    make_train_step,
)
from ssppo_jax.types import Batch, Mean, Policy, TrainState
from ssppo_jax.weights.checkpoint import Checkpoints

B, K, PROMPT, T, CHUNK = 8, 2, 6, 12, 6
ARCH = ARCHES["tied"]
loss = functools.partial(
    LOSSES["s_sppo"], beta=0.2, repulsion_weight=3.0
)  # both terms show in the gradient


def make_batch(padding_rows=0):
    """[B,...]: eight prompts, two completions each; the last `padding_rows` rows have weight 0 and
    hold rubbish."""
    rng = np.random.default_rng(0)
    real = np.arange(B) < B - padding_rows
    mask = mask_of(rng.integers(1, T + 1, (B, K)), T) * real[:, None, None]
    prompts = make_prompts((5, 1, 6, 3, 2, 6, 4, 2), PROMPT)

    def rate(*shape):
        return np.where(real.reshape(-1, *(1,) * (len(shape) - 1)), rng.uniform(0, 1, shape), 1e6)

    completion = np.where(mask > 0, rng.integers(1, V, mask.shape), PAD).astype(np.int32)
    logp = scorer(logprob_chunk=CHUNK)(prompts, completion, mask).logp
    old, ref, init = (logp + 0.2 * rng.standard_normal(logp.shape) for _ in range(3))
    batch = Batch(
        prompt=prompts.tokens,
        prompt_length=prompts.length,
        completion=completion,
        mask=mask,
        old_logp=old,
        ref_logp=ref,
        init_logp=init,
        win_rate=rate(B, K),
        target=rate(B, K),
        p_win=rate(B),
        similarity=rate(B),
        advantage=rate(B, K),
        weight=real.astype(np.float32),
    )
    return jax.tree.map(lambda x: x if x.dtype == np.int32 else x.astype(np.float32), batch)


def micro(batch, count):
    """[B,...] -> [count,B/count,...]"""
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)


def apply_on(mesh=None):
    decoder = Decoder(ARCH) if mesh is None else Decoder(ARCH, constrain=Constrain(mesh))
    return make_apply(decoder, logprob_chunk=CHUNK)


def remember():
    """An optimizer that moves nothing and keeps the gradient it was given as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda gradient, state, params: (jax.tree.map(jnp.zeros_like, gradient), gradient),
    )


@functools.cache
def gradient_step():
    return jit(make_train_step(apply_on(), loss, ratio_stats, remember()))


def gradient_of(batch):
    """The gradient a train step feeds to its optimizer, and the step's metrics."""
    state, metrics = gradient_step()(TrainState(PARAMS["tied"], PARAMS["tied"], np.int32(0)), batch)
    return state.opt_state, {name: float(m.result()) for name, m in metrics.items()}


def assert_same_gradient(got, want, tolerance=1e-6):
    """Every element within `tolerance` of the gradient's norm."""
    norm = optax.tree.norm(want)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        np.testing.assert_allclose(
            a, b, atol=tolerance * norm, rtol=0, err_msg=jax.tree_util.keystr(path)
        )


@functools.cache
def whole():
    return gradient_of(micro(make_batch(), 1))


# ---- one gradient --------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_mean_loss():
    b = make_batch()

    def value(params):
        policy, _ = apply_on()(params, b.prompt, b.prompt_length, b.completion, b.mask)
        return loss(policy, b)[0].result()

    mean, gradient = jit(jax.value_and_grad(value))(PARAMS["tied"])
    assert_same_gradient(whole()[0], gradient)
    np.testing.assert_allclose(whole()[1]["loss"], mean, rtol=1e-6)


@pytest.mark.parametrize("count, padding_rows", [(8, 0), (8, 3), (2, 3)])
def test_micro_batches_give_the_gradient_and_metrics_of_the_whole_batch(count, padding_rows):
    """Three padding rows leave micro-batches of 4 and 1 real rows, where a mean of means would be
    wrong."""
    batch = make_batch(padding_rows)
    (one, metrics), (many, other) = (gradient_of(micro(batch, n)) for n in (1, count))
    assert_same_gradient(many, one)
    assert other.keys() - metrics.keys() == {"grad_variance"} and metrics.keys() <= other.keys()
    for name in metrics:
        np.testing.assert_allclose(other[name], metrics[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_gradients_variance_is_estimated_from_its_micro_batches():
    """1/(M (M-1)) sum_m |g_m - g|^2 of gradients computed one by one; micro-batches of filler alone
    do not count."""
    batch = make_batch()
    parts = [micro(jax.tree.map(lambda x, m=m: x[m : m + 2], batch), 1) for m in range(0, B, 2)]
    flat = np.stack(
        [np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradient_of(p)[0])]) for p in parts]
    )
    spread = np.sum((flat - flat.mean(0)) ** 2) / (4 * 3)
    np.testing.assert_allclose(gradient_of(micro(batch, 4))[1]["grad_variance"], spread, rtol=1e-4)
    filled = jax.tree.map(
        lambda x, y: np.concatenate([x[:4], y[4:]]), batch, make_batch(padding_rows=4)
    )
    half = np.sum((flat[:2] - flat[:2].mean(0)) ** 2) / 2
    np.testing.assert_allclose(gradient_of(micro(filled, 4))[1]["grad_variance"], half, rtol=1e-4)


def test_padding_rows_change_nothing():
    batch = make_batch(padding_rows=2)
    padded, metrics = gradient_of(micro(batch, 1))
    dropped, other = gradient_of(micro(jax.tree.map(lambda x: x[:6], batch), 1))
    assert_same_gradient(padded, dropped)
    np.testing.assert_allclose(metrics["loss"], other["loss"], rtol=1e-6)


def test_metrics_hold_the_loss_its_terms_norms_and_statistics():
    gradient, metrics = whole()
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-6)
    np.testing.assert_allclose(
        metrics["loss"], metrics["term/regression"] + metrics["term/repulsion"], rtol=1e-6
    )
    assert metrics["finite"] == 1.0 and metrics["update_norm"] == 0.0
    assert {"ratio/mean", "kl/old_k1", "length/mean", "similarity/hidden"} <= metrics.keys()


@pytest.mark.parametrize("count", [1, 8])
def test_one_nan_token_makes_the_step_not_finite(count):
    batch = make_batch()
    assert batch.mask[3, 1, 0] == 1
    batch.ref_logp[3, 1, 0] = np.nan
    assert gradient_of(micro(batch, count))[1]["finite"] == 0.0


def test_an_infinite_gradient_of_a_finite_loss_is_not_finite():
    def root(policy, batch):  # 0 with an infinite slope
        mean, _ = loss(policy, batch)
        return mean._replace(total=jnp.sqrt(policy.hidden[0, 0, 0] * 0.0)), {}

    step = jit(make_train_step(apply_on(), root, lambda policy, batch: {}, remember()))
    _, metrics = step(
        TrainState(PARAMS["tied"], PARAMS["tied"], np.int32(0)), micro(make_batch(), 1)
    )
    assert metrics["loss"].total == 0.0 and metrics["finite"].value == 0.0


def test_a_batch_of_padding_alone_gives_a_zero_gradient():
    gradient, metrics = gradient_of(micro(make_batch(padding_rows=B), 1))
    assert not any(np.any(x) for x in jax.tree.leaves(gradient))
    assert metrics["loss"] == 0.0 and metrics["finite"] == 1.0


def test_the_rate_given_to_a_step_scales_its_update():
    """Plain descent: parameters move by -rate * gradient, whatever the optimizer's own rate is."""
    optimizer = make_optimizer(OPTIMIZERS["sgd"](), 7.0, max_grad_norm=0.0)
    step = jit(make_train_step(apply_on(), loss, ratio_stats, optimizer))
    params = PARAMS["tied"]
    state = TrainState(params, optimizer.init(params), np.int32(0))
    after, _ = step(state, micro(make_batch(), 1), None, np.float32(0.5))
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, params, whole()[0])
    assert_same_gradient(after.params, expected)
    assert optax.tree.norm(jax.tree.map(jnp.subtract, after.params, params)) > 1e-3


# ---- meshes --------------------------------------------------------------------------------------


@functools.cache
def two_steps(shape):
    """(loss of each of two steps, parameters after them, compiled text) on a mesh of this shape."""
    mesh = make_mesh(shape, jax.devices()[: math.prod(shape)])
    optimizer = make_optimizer(OPTIMIZERS["rmsprop"](), 3e-5, max_grad_norm=1.0)
    state = fresh_state(
        mesh, jax.device_put(PARAMS["tied"], shardings(mesh, PARAMS["tied"])), optimizer
    )
    batch = put_rows(mesh, micro(make_batch(), 1), axis=1)
    given = state
    step = (
        jit(make_train_step(apply_on(mesh), loss, ratio_stats, optimizer), donate_argnums=0)
        .lower(state, batch)
        .compile()
    )
    losses = []
    for _ in range(2):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"].result()))
    return losses, state, step.as_text(), given


MESHES = [(8, 1, 1), (2, 2, 2), (1, 4, 2)]


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_two_steps_do_not_depend_on_the_mesh(shape):
    losses, state, *_ = two_steps(shape)
    want_losses, want, *_ = two_steps((1, 1, 1))
    assert want_losses[1] < want_losses[0] and state.step == 2
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    for got, expected in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(want.params), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), want.params, PARAMS["tied"])
    assert min(jax.tree.leaves(moved)) > 2e-4


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_updated_parameters_stay_cut_as_they_were(shape):
    _, state, _, given = two_steps(shape)
    for old, new in zip(jax.tree.leaves(given), jax.tree.leaves(state), strict=True):
        assert new.sharding.is_equivalent_to(old.sharding, new.ndim)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_the_state_is_donated(shape):
    *_, given = two_steps(shape)
    assert all(x.is_deleted() for x in jax.tree.leaves(given))


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_no_device_holds_the_logits_or_the_states_of_every_row(shape):
    """XLA left alone would replicate both: the states where embeddings are looked up, the logits at
    the head."""
    shapes = shapes_in(two_steps(shape)[2])
    with_vocabulary = [math.prod(dims) for dims in shapes if {V, V // shape[2]} & set(dims)]
    assert max(with_vocabulary) <= V * ARCH.hidden_size < B * K * T * V // shape[2]
    rows, slots = B // (shape[0] * shape[1]), PROMPT + K * T
    assert (rows, slots) in {dims[:2] for dims in shapes}
    assert (
        B,
        slots,
        ARCH.hidden_size,
    ) not in shapes  # but each may hold its columns of all rows: see `Constrain`
    text, columns = two_steps(shape)[2], ARCH.hidden_size
    gathered = {
        tuple(map(int, dims.split(",")))
        for dims in re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)
    }
    assert bool(gathered) == (
        shape[1] > 1
    )  # layers' matrices are, the embeddings, also the head, never whole
    assert not {tuple(sorted(dims)) for dims in gathered} & {(columns, V), (columns, V // shape[2])}


def test_replicas_are_parts_of_the_batch_and_pass_each_other_only_gradients():
    """Of each leaf that fsdp cuts a device passes its part; losses and norms are scalars."""
    shape = (2, 1, 4, 1)
    losses, state, text, _ = two_steps(shape)
    as_data = two_steps((1, 2, 4, 1))
    assert losses == as_data[0]
    jax.tree.map(np.testing.assert_array_equal, state.params, as_data[1].params)
    across = [one for one in collectives(text) if one.between_nodes(4)]
    assert {one.kind for one in across} == {"all-reduce"}
    passed = sum(one.passes * one.size / 2 for one in across)  # an all-reduce passes twice
    wanted = abstract(make_mesh(shape), PARAMS["tied"])
    own = shard_bytes(wanted) + shard_bytes(wanted["embed"])  # once more as the head
    assert own <= passed < own + 500
    inside = [one for one in collectives(text) if not one.between_nodes(4)]
    assert {one.kind for one in inside} >= {"all-gather", "all-reduce"}


def shapes_in(text):
    """Dimensions of every float32 array in compiled HLO; each device's own part."""
    return {
        tuple(int(d) for d in found.split(",")) for found in re.findall(r"f32\[([\d,]+)\]", text)
    }


def test_gradients_of_half_precision_parameters_are_summed_in_float32():
    """256 + 0.5 is 256 in bfloat16: summed there, all micro-batches but the first would be lost."""
    count = 256
    slope = np.full((count, 1), 0.5, np.float32)
    slope[0] = 256.0

    def apply(params, *_):
        return Policy(params["w"].astype(jnp.float32)[None, None], jnp.zeros((1, 1, 1))), None

    def linear(policy, batch):
        return Mean(jnp.sum(batch.p_win * policy.logp[:, 0, 0]), jnp.sum(batch.weight)), {}

    fields = {name: np.zeros((count, 1), np.float32) for name in Batch._fields}
    batch = Batch(**fields | {"p_win": slope, "weight": np.ones_like(slope)})
    optimizer = optax.sgd(0.0)
    params = {"w": jnp.ones((1,), jnp.bfloat16)}
    step = make_train_step(apply, linear, lambda policy, batch: {}, optimizer)
    _, metrics = jax.jit(step)(TrainState(params, optimizer.init(params), jnp.int32(0)), batch)
    np.testing.assert_allclose(metrics["grad_norm"].result(), slope.mean(), rtol=1e-6)


def test_the_first_update_of_a_rollout_takes_its_own_log_probs_for_old_ones():
    """Old log-probs that are 1e-3 off: GSPO clips some as if the policy had moved. On-policy the
    gradient is -A/(B K L) per token, and the statistics still see what another program scored."""
    rng, shape = np.random.default_rng(0), (2, 2, 3)  # two micro-batches
    params = {"w": -rng.uniform(0.5, 2.0, shape).astype(np.float32)}
    worth = np.tile(np.array([1.0, -2.0], np.float32), (2, 2, 1))
    off = np.float32(1e-3) * np.array([-1, 1], np.float32)[:, None]  # ratios with the sign of A
    own = Batch._fields[: -len(Batch._field_defaults)]  # no importance weights
    fields = {name: np.zeros((2, 2), np.float32) for name in own}
    fields |= {"prompt": np.ones((2, 2, 1), np.int32), "completion": np.ones((2, *shape), np.int32)}
    fields |= {"prompt_length": np.ones((2, 2), np.int32), "advantage": worth}
    fields |= dict.fromkeys(("win_rate", "target"), worth)
    old = np.broadcast_to(params["w"] + off, (2, *shape))
    tokens = dict.fromkeys(("old_logp", "ref_logp", "init_logp"), old)
    real = {"mask": np.ones((2, *shape), np.float32), "weight": np.ones((2, 2), np.float32)}
    batch = Batch(**fields | tokens | real)

    def apply(params, *_):
        return Policy(params["w"], jnp.zeros((2, 2, 1))), None

    gspo = GROUP_LOSSES["gspo"]
    step = jit(make_train_step(apply, gspo, ratio_stats, remember()))
    norms = jit(make_term_norms(apply, gspo))
    state = TrainState(params, params, np.int32(0))
    for on_policy, clipped in ((True, 0.0), (False, 1.0)):
        new, metrics = step(state, batch, on_policy=np.asarray(on_policy))
        found = {name: float(m.result()) for name, m in metrics.items()}
        assert found["clip_ratio/region_mean"] == clipped
        assert found["ratio/gap"] == pytest.approx(1e-3, rel=1e-2)
        gradient = np.broadcast_to(-(1 - clipped) * worth[0][:, :, None] / 12, shape)
        np.testing.assert_allclose(new.opt_state["w"], gradient, rtol=1e-6)
        part = jax.tree.map(lambda x: x[0], batch)
        norm = norms(params, part, None, np.asarray(on_policy))["grad_norm/surrogate"].result()
        np.testing.assert_allclose(norm, np.linalg.norm(gradient), rtol=1e-6)


@pytest.mark.parametrize("rounding", ["nearest", "master"])
def test_the_logged_update_is_the_one_that_the_parameters_took(rounding):
    """1 - 2^-6 is a bfloat16, and 1 - 2^-10 is rounded to 1: a quarter of the elements move."""
    size = 64
    slope = np.where(np.arange(size) % 4 == 0, 2.0**-6, 2.0**-10).astype(np.float32)

    def apply(params, *_):
        return Policy(params["w"].astype(jnp.float32)[None, None], jnp.zeros((1, 1, 1))), None

    def linear(policy, batch):
        return Mean(jnp.sum(slope * policy.logp[0, 0]), jnp.float32(1)), {}

    optimizer = optax.sgd(1.0)
    optimizer = with_master(optimizer) if rounding == "master" else optimizer
    params = {"w": jnp.ones(size, jnp.bfloat16)}
    batch = Batch(**{name: np.zeros((1, 1), np.float32) for name in Batch._fields})
    step = jax.jit(make_train_step(apply, linear, lambda policy, batch: {}, optimizer))
    state, metrics = step(TrainState(params, optimizer.init(params), jnp.int32(0)), batch)
    np.testing.assert_allclose(metrics["update_share"].result(), 0.25)
    np.testing.assert_allclose(metrics["update_norm"].result(), 4 * 2.0**-6)
    np.testing.assert_allclose(metrics["grad_norm"].result(), np.linalg.norm(slope), rtol=1e-6)
    for _ in range(3):  # of -2^-10, four make the smallest step below 1, 2^-8
        state, metrics = step(state, batch)
    moved = np.asarray(state.params["w"], np.float32)[1:4]
    np.testing.assert_array_equal(moved, 1 - 2.0**-8 if rounding == "master" else 1.0)


def test_a_model_beyond_32_bits_of_parameters_has_a_step():
    """Llama 3 70B: one stacked matrix alone has more than 2^31 elements. Nothing is computed."""

    def apply(params, *_):
        return Policy(jnp.sum(params["w"])[None, None, None], jnp.zeros((1, 1, 1))), None

    def linear(policy, batch):
        return Mean(jnp.sum(policy.logp), jnp.float32(1)), {}

    optimizer = optax.sgd(1.0)
    params = {"w": jax.ShapeDtypeStruct((80, 8192, 28672), jnp.float32)}
    batch = Batch(**{name: np.zeros((1, 1), np.float32) for name in Batch._fields})
    step = make_train_step(apply, linear, lambda policy, batch: {}, optimizer)
    state = TrainState(params, jax.eval_shape(optimizer.init, params), jnp.int32(0))
    new, metrics = jax.eval_shape(step, state, batch)
    assert new.params["w"] == params["w"] and metrics["update_share"].total.dtype == jnp.float32


def test_a_checkpoint_holds_float32_masters_that_are_cut_as_the_parameters_are(tmp_path):
    mesh = make_mesh((2, 2, 2))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS["tied"])
    optimizer = with_master(OPTIMIZERS["rmsprop"]())
    state = fresh_state(mesh, jax.device_put(half, shardings(mesh, half)), optimizer)
    like = abstract_state(mesh, abstract(mesh, jax.eval_shape(lambda: half)), optimizer)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state, {}, finite=True)
    found, _ = checkpoints.restore(1, like)
    for path, master in jax.tree_util.tree_leaves_with_path(found.opt_state.kept):
        own = functools.reduce(lambda tree, part: tree[part.key], path, found.params)
        assert master.dtype == jnp.float32 and own.dtype == jnp.bfloat16
        assert master.sharding.is_equivalent_to(own.sharding, own.ndim)
        np.testing.assert_array_equal(master, np.asarray(own, np.float32))


# ---- scoring and diagnostics ---------------------------------------------------------------------


def test_scoring_gives_log_probs_and_entropy_and_zeros_in_padding():
    b = make_batch(padding_rows=1)
    scored = jit(make_score_step(apply_on()))(
        PARAMS["tied"], b.prompt, b.prompt_length, b.completion, b.mask
    )
    policy, entropy = jit(functools.partial(apply_on(), entropy=True))(
        PARAMS["tied"], b.prompt, b.prompt_length, b.completion, b.mask
    )
    for got, want in ((scored.logp, policy.logp), (scored.entropy, entropy)):
        np.testing.assert_allclose(got, np.where(b.mask > 0, want, 0), atol=2e-6)
        assert not np.asarray(got)[b.mask == 0].any()
    assert (np.asarray(scored.entropy)[b.mask > 0] > 0).all()


def test_term_norms_are_those_of_each_term_alone():
    b = make_batch(padding_rows=2)
    norms = jit(make_term_norms(apply_on(), loss))(PARAMS["tied"], b)
    assert norms.keys() == {"grad_norm/regression", "grad_norm/repulsion"}

    def terms(params):
        policy, _ = apply_on()(params, b.prompt, b.prompt_length, b.completion, b.mask)
        metrics = loss(policy, b)[1]
        return jnp.stack([metrics[f"term/{name}"].result() for name in ("regression", "repulsion")])

    each = jit(jax.jacrev(terms))(PARAMS["tied"])
    for i, name in enumerate(("regression", "repulsion")):
        want = optax.tree.norm(jax.tree.map(lambda x, i=i: x[i], each))
        np.testing.assert_allclose(norms[f"grad_norm/{name}"].result(), want, rtol=1e-5)
        assert want > 1e-2
