"""Shared keys are attention like any other, padding is never seen, and every implementation is the
reference's."""

import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ARCHES, PARAMS, V, jit, make_prompts

from ssppo_jax import schema
from ssppo_jax.models import attention, splash
from ssppo_jax.models.attention import KeyBlock
from ssppo_jax.models.decoder import Decoder
from ssppo_jax.models.masks import Masks, Scope
from ssppo_jax.runtime import attention_problem

B, K, T, S, H, G, E = 2, 3, 4, 5, 4, 2, 8
attend = jit(functools.partial(attention.attend, scale=E**-0.5))


@pytest.fixture
def normal():
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def plain_attention(q, k, v, seen):
    """One query row [H,E] over keys [G,S,E], in float64, head by head; query head h reads key head
    h // (H/G)."""
    out = np.zeros(q.shape)
    for h in range(q.shape[0]):
        g = h // (q.shape[0] // k.shape[0])
        score = np.where(
            seen, k[g].astype(float) @ q[h].astype(float) / np.sqrt(q.shape[1]), -np.inf
        )
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
        keys, values = (
            np.concatenate([s[b], o[b, k]], axis=1) for s, o in zip(shared, own, strict=True)
        )
        seen = np.concatenate([np.arange(S) < length[b], np.arange(T) <= t])
        np.testing.assert_allclose(
            got[b, k, t], plain_attention(q[b, k, t], keys, values, seen), atol=2e-6
        )


@pytest.mark.parametrize("chunk", [1, 2, 3])  # of 4 queries
def test_queries_in_chunks_give_the_same_and_the_same_gradients(chunk, normal):
    q, shared, own = normal(B, K, T, H, E), normal(2, B, G, S, E), normal(2, B, K, G, T, E)
    prompt_mask = (np.arange(S) < np.array([5, 2])[:, None])[:, None, None, :]
    window = np.arange(T)[:, None] < np.arange(S)[None] + 2
    prompt_mask = prompt_mask & window[None, None]
    causal = np.tril(np.ones((T, T), bool))[None, None]

    def value(chunk, q, shared, own):
        blocks = KeyBlock(*shared, prompt_mask), KeyBlock(*own, causal)
        out = attention.attend(q, blocks, scale=0.3, softcap=2.0, chunk=chunk)
        return jnp.sum(jnp.sin(out)), out

    whole, cut = (
        jit(jax.value_and_grad(functools.partial(value, c), argnums=(0, 1, 2), has_aux=True))(
            q, shared, own
        )
        for c in (0, chunk)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), cut, whole)
    scores = re.findall(
        r"f32\[2,2,3,2,(\d),9\]",
        str(jax.make_jaxpr(functools.partial(value, chunk))(q, shared, own)),
    )
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
    value, gradient = jit(
        jax.value_and_grad(lambda q: jnp.sum(attention.attend(q, (block,), scale=1.0) ** 2))
    )(q)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_attention_scores_of_bfloat16_inputs_are_summed_in_float32():
    q = jnp.ones((1, 1, 1, 1, 256), jnp.bfloat16)
    k = jnp.concatenate([jnp.ones((1, 1, 1, 256)), jnp.ones((1, 1, 1, 256)).at[..., 0].set(2.0)], 2)
    block = KeyBlock(
        k.astype(jnp.bfloat16),
        jnp.eye(2, 256)[None, None].astype(jnp.bfloat16),
        jnp.ones((1, 1, 1, 2), bool),
    )
    out = jit(functools.partial(attention.attend, scale=256**-0.5))(q, (block,))
    weight = np.asarray(out, np.float32)[0, 0, 0, 0, :2]
    want = [1 / (1 + np.exp(1 / 16)), 1 / (1 + np.exp(-1 / 16))]  # scores 16 and 16 + 1/16
    np.testing.assert_allclose(weight, want, atol=2e-3)


def test_a_soft_cap_bounds_the_scaled_scores_before_they_are_masked(normal):
    q, (k, v) = normal(1, 1, 1, 1, E), normal(2, 1, 1, S, E)
    mask = (np.arange(S) < 3)[None, None, None, :]
    got = jit(functools.partial(attention.attend, scale=3.0, softcap=0.5))(
        q, (KeyBlock(k, v, mask),)
    )
    score = 0.5 * np.tanh(3.0 * (k[0, 0, :3].astype(float) @ q[0, 0, 0, 0]) / 0.5)
    want = np.exp(score) / np.exp(score).sum() @ v[0, 0, :3]
    np.testing.assert_allclose(np.asarray(got).ravel(), want, atol=1e-6)


# ---- fused kernels -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tied", "untied", "mistral", "qwen3"])
def test_a_model_reads_the_same_by_jaxs_attention(name):
    prompts, rng = make_prompts((6, 1, 4), 6), np.random.default_rng(1)
    completion = rng.integers(0, V, (3, 2, 5)).astype(np.int32)

    def value(how, params):
        out = Decoder(ARCHES[name], attention=how).apply(
            {"params": params}, prompts.tokens, prompts.length, completion
        )
        real = np.arange(6) < prompts.length[:, None]
        return (
            jnp.sum(jnp.sin(out.completion)) + jnp.sum(jnp.sin(out.prompt) * real[..., None]),
            out.completion,
        )

    plain, fused = (
        jit(jax.value_and_grad(functools.partial(value, how), has_aux=True))(PARAMS[name])
        for how in ("einsum", "xla")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), fused, plain)


@pytest.mark.parametrize(("p", "k", "t"), [(5, 2, 4), (7, 1, 3), (4, 0, 0), (1, 3, 2)])
def test_the_mask_of_a_stream_is_that_of_its_parts(p, k, t):
    size, full = p + k * t + 3, np.array([p])
    mask = splash.SharedPrompt(p, k, t, size)[slice(0, size), slice(0, size)]
    masks = Masks(Scope(None, None, full, np.array([0]), None, None), None)
    want = np.zeros((size, size), bool)
    want[:p, :p] = masks.prompt(p)[0, 0]
    for i in range(k):
        own = slice(p + i * t, p + i * t + t)
        want[own, :p] = masks.of_prompt(t, p)[0, 0]
        want[own, own] = masks.own(t)[0, 0]
    beyond = np.arange(p + k * t, size)
    want[beyond, beyond] = True
    np.testing.assert_array_equal(mask, want)


def test_a_part_of_the_mask_is_a_part_of_the_whole():
    mask = splash.SharedPrompt(5, 2, 4, 16)
    np.testing.assert_array_equal(
        mask[slice(4, 9), slice(2, 12)], mask[slice(0, 16), slice(0, 16)][4:9, 2:12]
    )


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_tpu_kernel_gives_the_reference_and_its_gradient(softcap, normal):
    """Interpreted: the kernel's own arithmetic and blocks, without a TPU. Three blocks of 128."""
    layout = SimpleNamespace(p=100, k=2, t=100)
    size, length = layout.p + layout.k * layout.t, np.array([100, 3], np.int32)
    q, k, v = normal(2, size, H, E), normal(2, size, G, E), normal(2, size, G, E)
    real = np.arange(size)[None] < length[:, None]
    real[:, layout.p :] = True

    def reference(q, k, v):
        masks = Masks(Scope(None, None, length, np.zeros(2, np.int32), None, None), None)
        look = functools.partial(attention.attend, scale=0.3, softcap=softcap)
        (kp, ko), (vp, vo) = (
            (x[:, : layout.p], x[:, layout.p :].reshape(2, layout.k, layout.t, G, E))
            for x in (k, v)
        )
        shared, own = (
            (jnp.swapaxes(a, -3, -2), jnp.swapaxes(b, -3, -2)) for a, b in ((kp, vp), (ko, vo))
        )
        prompt = look(q[:, None, : layout.p], (KeyBlock(*shared, masks.prompt(layout.p)),))[:, 0]
        blocks = (
            KeyBlock(*shared, masks.of_prompt(layout.t, layout.p)),
            KeyBlock(*own, masks.own(layout.t)),
        )
        out = look(q[:, layout.p :].reshape(2, layout.k, layout.t, H, E), blocks)
        return jnp.concatenate([prompt, out.reshape(2, -1, H, E)], axis=1)

    def kernel(q, k, v):
        settings = {"layout": layout, "scale": 0.3, "softcap": softcap, "interpret": True}
        return splash.attend_stream(q, k, v, length, **settings)

    def value(look, q, k, v):
        out = jnp.where(real[..., None, None], look(q, k, v), 0.0)
        return jnp.sum(jnp.sin(out)), out

    want, got = (
        jit(jax.value_and_grad(functools.partial(value, look), argnums=(0, 1, 2), has_aux=True))(
            q, k, v
        )
        for look in (reference, kernel)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got, want)


def test_the_tpu_kernel_leaves_out_what_no_completion_may_see():
    """Of 17 x 17 blocks: the prompt's half and, for 16 completions, the prompt and their own."""
    made = splash._kernel(splash.SharedPrompt(128, 16, 128, 17 * 128), 2, 128, None, True)
    looked_at = np.asarray(made.fwd_mask_info.block_mask)
    assert (looked_at > 0).sum() == 1 + 16 * 2


# ---- which of them can run here ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "platform", "name", "words"),
    [
        ("splash", "cpu", "tied", "is a TPU kernel, and these devices are cpu"),
        ("splash", "tpu", "tied", None),
        ("splash", "tpu", "gemma2", "sliding windows, and gemma2's could bind within 576 tokens"),
        ("cudnn", "tpu", "tied", "NVIDIA GPUs, and these devices are tpu"),
        ("cudnn", "gpu", "tied", "set model.dtype=bfloat16"),
        ("xla", "cpu", "gemma2", "no soft cap, which gemma2 needs"),
        ("xla", "cpu", "gemma3", None),
        ("einsum", "cpu", "gemma2", None),
    ],
)
def test_an_implementation_that_cannot_run_the_model_here_says_what_to_set(
    how, platform, name, words
):
    config = schema.base_config()
    config.model.attention = how
    config.data.prompt_buckets, config.data.max_prompt_length = (64,), 64
    found = attention_problem(config, ARCHES[name], platform)
    assert (found is None) if words is None else words in found
    config.model.dtype = "bfloat16"
    if (how, platform) == ("cudnn", "gpu"):
        assert attention_problem(config, ARCHES[name], platform) is None
