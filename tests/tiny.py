"""Tiny decoders with random parameters, shared by the tests of the model, the sampler and the train
step."""

import functools

import jax
import numpy as np

from ssppo_jax.models.arch import LinearScaling, Llama3Scaling, tiny_arch
from ssppo_jax.models.decoder import Decoder, init_params
from ssppo_jax.models.lora import split
from ssppo_jax.models.policy import make_apply
from ssppo_jax.sampling.sampler import make_generate
from ssppo_jax.types import Prompts
from ssppo_jax.weights import hf, names

# LLVM and fusions off: a gradient compiles in 0.5 s instead of 4 s, and these models take no time
# to run.
jit = functools.partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False},
)
V = 96
EOS = tuple(range(2, 8))  # many, so that random models stop at different lengths
PAD = 0
ARCHES = {
    "tied": tiny_arch(vocab_size=V, eos_ids=EOS),
    "untied": tiny_arch(vocab_size=V, tie_embeddings=False, num_kv_heads=1, rope_theta=500.0),
    "qwen2": tiny_arch(vocab_size=V, model_type="qwen2", num_kv_heads=4),
    "llama3": tiny_arch(
        vocab_size=V, tie_embeddings=False, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 16)
    ),
    "linear": tiny_arch(vocab_size=V, rope_scaling=LinearScaling(4.0), rope_theta=100.0),
    "mistral": tiny_arch(
        vocab_size=V, model_type="mistral", sliding_window=4, sliding_layers=(0, 1)
    ),
    "qwen3": tiny_arch(
        vocab_size=V, model_type="qwen3", head_dim=6, sliding_window=3, sliding_layers=(1,)
    ),
    "gemma2": tiny_arch(
        vocab_size=V,
        model_type="gemma2",
        sliding_window=4,
        sliding_layers=(0,),
        query_pre_attn_scalar=3,
        attn_softcap=2.0,
        final_softcap=1.5,
    ),
    "gemma3": tiny_arch(
        vocab_size=V,
        model_type="gemma3_text",
        sliding_window=5,
        sliding_layers=(0,),
        query_pre_attn_scalar=5,
        rope_theta=1000.0,
        local_rope_theta=10.0,
        rope_scaling=LinearScaling(2.0),
    ),
}


def random_params(arch, seed=0):
    """Every element different, norm scales and biases included; logits and attention far from
    uniform."""
    rng, tree = np.random.default_rng(seed), {}
    for leaf in names.leaves(arch):
        value = rng.standard_normal(names.shape(leaf, arch))
        if leaf.path.endswith("scale"):
            value = (0.0 if arch.family.gemma else 1.0) + 0.3 * value
        elif leaf.path.endswith(("bias", "embedding")):
            value = 0.25 * value
        else:
            value = value * arch.hidden_size**-0.5
        hf.insert(tree, leaf.path, value.astype(np.float32))
    return tree


def random_adapters(arch, lora, seed=0, scale=0.3):
    """Adapters of a model, B included."""
    shapes = split(
        jax.eval_shape(lambda: init_params(Decoder(arch, lora=lora), jax.random.key(0)))
    )[1]
    rng, tree = np.random.default_rng(seed), {}
    for path, leaf in hf.flatten(shapes):
        hf.insert(tree, path, (scale * rng.standard_normal(leaf.shape)).astype(np.float32))
    return tree


PARAMS = {name: random_params(arch, seed) for seed, (name, arch) in enumerate(ARCHES.items())}


def make_prompts(lengths, width, *, seed=0, fill=PAD, first_address=7):
    """Random prompts of these lengths in `width` slots. Row i is the same whatever the width and
    the fill."""
    tokens = np.full((len(lengths), width), fill, np.int32)
    for i, n in enumerate(lengths):
        tokens[i, :n] = np.random.default_rng([seed, i]).integers(1, V, n)
    address = np.arange(first_address, first_address + len(lengths), dtype=np.uint32)
    return Prompts(tokens, np.asarray(lengths, np.int32), address)


def rows(prompts, index):
    """Some rows of a batch of prompts, in this order."""
    return Prompts(*(x[np.asarray(index)] for x in prompts))


def mask_of(length, t):  # [B,K] -> [B,K,T] float32
    return (np.arange(t) < np.asarray(length)[..., None]).astype(np.float32)


@functools.cache
def generator(num_samples, sampling, name="tied", eos_ids=EOS):
    """A jitted sampler of one of the models, compiled once a session per shape: generate(prompts,
    key)."""
    generate = jit(
        make_generate(
            Decoder(ARCHES[name]),
            num_samples=num_samples,
            eos_ids=eos_ids,
            pad_id=PAD,
            sampling=sampling,
        )
    )
    return lambda prompts, key: jax.device_get(generate(PARAMS[name], prompts, key))


@functools.cache
def scorer(name="tied", **settings):
    """A jitted `apply` of one of the models with its own parameters: score(prompts, tokens, mask)
    -> Policy."""
    apply = make_apply(Decoder(ARCHES[name]), **({"logprob_chunk": 4} | settings))
    jitted = jit(lambda *args: apply(PARAMS[name], *args)[0])
    return lambda prompts, tokens, mask: jax.device_get(
        jitted(prompts.tokens, prompts.length, tokens, mask)
    )
