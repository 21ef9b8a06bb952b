"""The decoder is each family: equal to an independent float64 implementation without shared prompts
and caches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from tiny import ARCHES, PARAMS, V, jit, make_prompts

from ssppo_jax.models.arch import LinearScaling
from ssppo_jax.models.decoder import KV, Cache, Decoder, init_params, output_kernel
from ssppo_jax.weights import hf, names

LENGTHS, P, K, T = (6, 1, 4), 6, 2, 5


# ---- every family from its equations, one ordinary causal sequence at a time ---------------------


def numpy_decoder(tree, arch, tokens):
    """tokens [S] -> logits [S,V] and the states after each block and after the final norm, all
    float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
    gemma = arch.model_type.startswith("gemma")
    x = p["embed"]["embedding"][tokens] * (np.sqrt(arch.hidden_size) if gemma else 1.0)
    states = []
    for n in range(arch.num_layers):
        layer = jax.tree.map(lambda a, n=n: a[n], p["layers"])
        y = numpy_attention(layer["attn"], arch, n, numpy_norm(x, layer["attn_norm"], arch))
        x = x + (numpy_norm(y, layer["attn_post_norm"], arch) if gemma else y)
        y, mlp = numpy_norm(x, layer["mlp_norm"], arch), layer["mlp"]
        gate = (gelu if gemma else silu)(y @ mlp["gate"]["kernel"])
        y = (gate * (y @ mlp["up"]["kernel"])) @ mlp["down"]["kernel"]
        x = x + (numpy_norm(y, layer["mlp_post_norm"], arch) if gemma else y)
        states.append(x)
    x = numpy_norm(x, p["norm"], arch)
    logits = x @ (p["embed"]["embedding"].T if arch.tie_embeddings else p["head"]["kernel"])
    return capped(logits, arch.final_softcap), [*states, x]


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def capped(x, cap):
    return x if cap is None else cap * np.tanh(x / cap)


def numpy_norm(x, params, arch):
    scale = params["scale"] + (1 if arch.model_type.startswith("gemma") else 0)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + arch.norm_eps) * scale


def numpy_attention(attn, arch, layer, x):
    def project(name):
        kernel = attn[name]["kernel"]
        y = np.stack([x @ kernel[:, h] for h in range(kernel.shape[1])])  # [heads,S,E]
        y = y + attn[name]["bias"][:, None] if "bias" in attn[name] else y
        return numpy_norm(y, attn[f"{name}_norm"], arch) if f"{name}_norm" in attn else y

    size, (q, k, v) = len(x), (project(name) for name in "qkv")
    q, k = (numpy_rope(y, arch, layer) for y in (q, k))
    back = np.arange(size)[:, None] - np.arange(size)
    unseen = (back < 0) | ((back >= arch.sliding_window) if layer in arch.sliding_layers else False)
    out = np.zeros_like(x)
    for h in range(arch.num_heads):
        g = h // (arch.num_heads // arch.num_kv_heads)
        score = capped(
            q[h] @ k[g].T / np.sqrt(arch.query_pre_attn_scalar or arch.head_dim), arch.attn_softcap
        )
        score[unseen] = -np.inf
        weight = np.exp(score - score.max(-1, keepdims=True))
        out += weight / weight.sum(-1, keepdims=True) @ v[g] @ attn["o"]["kernel"][h]
    return out


def numpy_rope(x, arch, layer):  # [heads,S,E]: element i turns with element i + E/2
    half, theta, scaling = arch.head_dim // 2, arch.rope_theta, arch.rope_scaling
    if arch.local_rope_theta is not None and layer in arch.sliding_layers:
        theta, scaling = arch.local_rope_theta, None
    frequency = np.array([scaled(theta ** (-2 * i / arch.head_dim), scaling) for i in range(half)])
    angle = np.arange(x.shape[1])[:, None] * frequency
    a, b = x[..., :half], x[..., half:]
    return np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1
    )


def scaled(frequency, s):
    """Llama 3.1: by wavelength against the original context over the two factors."""
    if s is None:
        return frequency
    if isinstance(s, LinearScaling):
        return frequency / s.factor
    wavelength = 2 * np.pi / frequency
    if wavelength < s.original_max_positions / s.high_freq_factor:
        return frequency
    if wavelength > s.original_max_positions / s.low_freq_factor:
        return frequency / s.factor
    smooth = (s.original_max_positions / wavelength - s.low_freq_factor) / (
        s.high_freq_factor - s.low_freq_factor
    )
    return (1 - smooth) * frequency / s.factor + smooth * frequency


# ---- the decoder ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts():
    return make_prompts(LENGTHS, P)


@pytest.fixture(scope="module")
def completion():
    return np.random.default_rng(1).integers(0, V, (len(LENGTHS), K, T)).astype(np.int32)


@functools.cache
def forward(name):
    """jitted (prompt, length, completion) -> Forward, the tap at the first block."""
    decoder = Decoder(ARCHES[name])
    return jit(lambda *args: decoder.apply({"params": PARAMS[name]}, *args, tap_layer=0))


@pytest.mark.parametrize("name", ARCHES)
def test_completions_on_a_shared_prompt_equal_ordinary_causal_sequences(name, prompts, completion):
    arch, params = ARCHES[name], PARAMS[name]
    out = forward(name)(prompts.tokens, prompts.length, completion)
    kernel = np.asarray(output_kernel(params, arch), np.float64)
    for b, n in enumerate(LENGTHS):
        for k in range(K):
            sequence = np.concatenate([prompts.tokens[b, :n], completion[b, k]])
            logits, states = numpy_decoder(params, arch, sequence)
            np.testing.assert_allclose(out.prompt[b, :n], states[-1][:n], atol=1e-5)
            np.testing.assert_allclose(out.completion[b, k], states[-1][n:], atol=1e-5)
            np.testing.assert_allclose(out.tap[b, k], states[0][n:], atol=1e-5)
            spoken = capped(
                np.asarray(out.completion[b, k], np.float64) @ kernel, arch.final_softcap
            )
            np.testing.assert_allclose(spoken, logits[n:], atol=1e-4)


def test_the_models_compared_attend_and_speak_far_from_uniformly(prompts):
    """Otherwise a wrong mask or rotation could hide below the tolerance."""
    for name, arch in ARCHES.items():
        logits, states = numpy_decoder(PARAMS[name], arch, prompts.tokens[0])
        other, _ = numpy_decoder(PARAMS[name], arch, np.roll(prompts.tokens[0], 1))
        assert logits.std() > 0.5 and np.abs(states[-1][-1] - other[-1].mean()).max() > 0.1


@pytest.mark.parametrize("name", ["tied", "mistral", "qwen3", "gemma2", "gemma3"])
def test_decoding_through_the_cache_equals_the_whole_forward(name, prompts, completion):
    decoder, params = Decoder(ARCHES[name]), {"params": PARAMS[name]}
    prefill = jit(lambda: decoder.apply(params, prompts.tokens, prompts.length, return_kv=True))()
    n, b, g, _, e = prefill.kv.k.shape
    shape = (n, b, K, g, T, e)
    # what is not filled is not seen
    own = KV(np.full(shape, 1e6, np.float32), np.full(shape, 1e6, np.float32))

    @jit
    def step(own, filled, token):
        out = decoder.apply(
            params,
            None,
            prompts.length,
            token,
            Cache(prefill.kv, own, filled, filled),
            return_kv=True,
        )
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=filled, axis=4)
        return jax.tree.map(put, own, out.kv), out.completion[:, :, 0]

    whole = forward(name)(prompts.tokens, prompts.length, completion)
    np.testing.assert_allclose(prefill.prompt, whole.prompt, atol=1e-5)
    for t in range(T):
        own, state = step(own, np.int32(t), completion[:, :, t : t + 1])
        np.testing.assert_allclose(state, whole.completion[:, :, t], atol=1e-5)


def test_prompt_padding_changes_nothing(prompts, completion):
    poisoned = make_prompts(LENGTHS, P, fill=V - 1)
    assert (poisoned.tokens != prompts.tokens).any()
    a, b = (forward("tied")(p.tokens, p.length, completion) for p in (prompts, poisoned))
    np.testing.assert_array_equal(a.completion, b.completion)
    np.testing.assert_array_equal(a.tap, b.tap)


def test_later_tokens_and_sibling_completions_change_nothing(prompts, completion):
    changed = completion.copy()
    changed[:, 0, 3:] = (changed[:, 0, 3:] + 1) % V
    a, b = (forward("tied")(prompts.tokens, prompts.length, c) for c in (completion, changed))
    np.testing.assert_array_equal(a.completion[:, 0, :3], b.completion[:, 0, :3])
    np.testing.assert_array_equal(a.completion[:, 1], b.completion[:, 1])
    np.testing.assert_array_equal(a.prompt, b.prompt)
    assert (np.abs(a.completion[:, 0, 3:] - b.completion[:, 0, 3:]).max(-1) > 1e-3).all()


# ---- how it is computed --------------------------------------------------------------------------


def gradient_of(**settings):
    """(params, prompts, completion) -> value and gradient of a sum that weighs every state
    differently."""
    decoder = Decoder(ARCHES["tied"], **settings)
    weight = np.random.default_rng(2).standard_normal((len(LENGTHS), K, T, 32)).astype(np.float32)

    def value(params, tokens, length, completion):
        return jnp.sum(
            decoder.apply({"params": params}, tokens, length, completion).completion * weight
        )

    return jax.value_and_grad(value)


def test_remat_and_unroll_change_neither_values_nor_gradients(prompts, completion):
    args = (PARAMS["tied"], prompts.tokens, prompts.length, completion)
    settings = ({}, {"unroll": 2}, {"remat": "dots"}, {"remat": "full"})
    (value, gradient), *others = (jit(gradient_of(**s))(*args) for s in settings)
    for other_value, other in others:
        np.testing.assert_allclose(other_value, value, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
            other,
            gradient,
        )


def test_each_remat_policy_recomputes_more_than_the_one_before(prompts, completion):
    args = (PARAMS["tied"], prompts.tokens, prompts.length, completion)
    products = [
        count(jax.make_jaxpr(gradient_of(remat=r))(*args).jaxpr, "dot_general")
        for r in ("none", "dots", "full")
    ]
    assert products[0] < products[1] < products[2]


def test_products_that_are_offloaded_are_those_that_dots_keeps(prompts, completion):
    args = (PARAMS["tied"], prompts.tokens, prompts.length, completion)
    kept, moved = (jax.make_jaxpr(gradient_of(remat=r))(*args).jaxpr for r in ("dots", "offload"))
    assert count(kept, "dot_general") == count(moved, "dot_general")
    assert count(moved, "device_put") > count(kept, "device_put")


def count(jaxpr, primitive):
    """Occurrences of a primitive in a jaxpr and everything inside it."""
    inner = [sub for eqn in jaxpr.eqns for sub in core.jaxprs_in_params(eqn.params)]
    return sum(eqn.primitive.name == primitive for eqn in jaxpr.eqns) + sum(
        count(sub, primitive) for sub in inner
    )


@pytest.mark.parametrize("name", ARCHES)
def test_initialised_parameters_are_those_the_name_table_lists(name):
    shapes = jax.eval_shape(lambda: init_params(Decoder(ARCHES[name]), jax.random.key(0)))
    want = {leaf.path: names.shape(leaf, ARCHES[name]) for leaf in names.leaves(ARCHES[name])}
    assert {path: leaf.shape for path, leaf in hf.flatten(shapes)} == want
