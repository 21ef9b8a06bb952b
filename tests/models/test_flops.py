"""The count of operations against the products that the traced model really contains, and against
loops over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from ssppo_jax.models import flops
from ssppo_jax.models.arch import tiny_arch
from ssppo_jax.models.decoder import Decoder, init_params, output_kernel
from ssppo_jax.models.logprobs import token_logprobs
from ssppo_jax.runs.throughput import chip_of

ARCHS = [
    tiny_arch(),
    tiny_arch(
        num_layers=5, num_heads=4, num_kv_heads=1, head_dim=16, mlp_dim=48, tie_embeddings=False
    ),
    tiny_arch(model_type="qwen3", num_layers=3),
]


def products(jaxpr) -> int:
    """Multiply-adds, as two, of every dot_general, loops counted as often as they run."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            inner_size = int(np.prod([shape[i] for i in contract]))
            total += 2 * int(np.prod(eqn.outvars[0].aval.shape)) * inner_size
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in jaxprs_in_params(eqn.params):
            total += times * products(inner)
    return total


def traced(arch, b, p, k, t, transform=lambda f: f):
    decoder = Decoder(arch)
    shapes = jax.eval_shape(lambda: init_params(decoder, jax.random.key(0)))

    def score(params, prompt, completion):
        out = decoder.apply({"params": params}, prompt, jnp.full((b,), p), completion)
        return token_logprobs(
            out.completion, output_kernel(params, arch), completion, chunk=arch.vocab_size
        ).logp.sum()

    ids = jax.ShapeDtypeStruct((b, p), jnp.int32), jax.ShapeDtypeStruct((b, k, t), jnp.int32)
    return products(jax.make_jaxpr(transform(score))(shapes, *ids).jaxpr)


def scores(arch, b, p, k, t):
    """The operations of attention as the traced model has them, without a mask; and as counted."""
    pairs = b * (p * p + k * (t * p + t * t))
    own = flops.attention(arch, np.full((b, k), p), np.full((b, k), t))
    seen = flops.attention(arch, np.zeros(b), np.full(b, p)) + own
    return 4 * pairs * arch.num_layers * arch.num_heads * arch.head_dim, seen


@pytest.mark.parametrize("arch", ARCHS, ids=["gqa", "mqa_head", "qwen3"])
def test_a_forward_pass_counts_the_products_of_the_traced_model(arch):
    b, p, k, t = 2, 12, 3, 5
    found = flops.forward(arch, np.full(b, p), np.full((b, k), t))
    computed, seen = scores(arch, b, p, k, t)
    assert found - seen == traced(arch, b, p, k, t) - computed


def test_a_training_step_is_three_forward_passes_but_for_the_first_and_the_recomputed_logits():
    arch = ARCHS[1]
    b, p, k, t = 2, 12, 3, 5
    found = flops.train_step(arch, np.full(b, p), np.full((b, k), t))
    traced_step = traced(arch, b, p, k, t, jax.grad)
    again = flops.head(arch, b * k * t)  # the chunked log-probs compute their logits a second time
    unmasked, seen = scores(arch, b, p, k, t)
    assert found - 3 * seen == traced_step - again - 3 * unmasked


def test_frozen_matrices_cost_two_forward_passes():
    arch, prompt, own = ARCHS[0], np.array([7, 3]), np.array([[4, 2], [1, 6]])
    tokens = int(prompt.sum() + own.sum())
    dense = flops.dense(arch, tokens) + flops.head(arch, int(own.sum()))
    full = flops.train_step(arch, prompt, own)
    assert full - flops.train_step(arch, prompt, own, adapters=True) == dense


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_keys_seen_are_counted_as_a_loop_over_tokens_counts_them(window):
    rng = np.random.default_rng(0)
    past, length = rng.integers(0, 9, (4, 3)), rng.integers(0, 9, (4, 3))
    want = sum(
        min(i + 1, window or 10**9)
        for p, n in zip(past.ravel(), length.ravel(), strict=True)
        for i in range(p, p + n)
    )
    assert flops._pairs(past, length, window) == want


def test_a_sliding_window_binds_its_own_layers_alone():
    plain = tiny_arch(model_type="gemma2", num_layers=4)
    window = tiny_arch(model_type="gemma2", num_layers=4, sliding_window=2, sliding_layers=(0, 2))
    past, length = np.zeros(1), np.array([6])
    whole = flops.attention(plain, past, length)
    assert flops.attention(window, past, length) == whole / 2 + whole / 2 * 11 / 21


def test_chips_are_known_by_what_jax_calls_them():
    assert [
        chip_of(kind).name
        for kind in ("TPU v5 lite", "TPU v5p", "TPU v5", "TPU v6 lite", "NVIDIA H200")
    ] == ["v5e", "v5p", "v5p", "v6e", "h200"]
    assert chip_of("cpu") is None
