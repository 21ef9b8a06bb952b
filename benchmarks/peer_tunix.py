"""Tunix: python benchmarks/peer_tunix.py FOLDER TASK..., in an environment of its own
(google-tunix)."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tunix.models.llama3.model as llama
import work
from flax import nnx
from tunix.generate import sampler
from tunix.models.llama3 import params as llama_params
from tunix.sft.dpo.dpo_trainer import TrainExample, compute_logps, dpo_loss_fn

warnings.filterwarnings("ignore")
CONFIG = llama.ModelConfig(  # SmolLM2-135M's config.json
    num_layers=30,
    vocab_size=49152,
    embed_dim=576,
    hidden_dim=1536,
    num_heads=9,
    head_dim=64,
    num_kv_heads=3,
    rope_theta=100_000,
    norm_eps=1e-5,
    weight_tying=True,
)
# Tunix 0.1.7 does not hand the configured RoPE base on: every Llama 3 is rotated with this
# function's default, 1e6.
llama.apply_rope = functools.partial(llama.apply_rope, rope_theta=CONFIG.rope_theta)


def model_of(folder: str):
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return llama_params.create_model_from_safe_tensors(folder, CONFIG, mesh, dtype=jnp.float32)


class Ids:
    """A tokenizer of texts that are ids with blanks between them."""

    pad_token_id, eos_token_id, bos_token_id = 0, 2, 1

    def encode(self, text, **_):
        return [int(x) for x in text.split()]

    def decode(self, ids, **_):
        return ""

    def tokenize(self, text):
        return np.array(self.encode(text))

    def bos_id(self):
        return 1

    def eos_id(self):
        return 2

    def pad_id(self):
        return 0


def sampling(folder: str, count: int, samples: int, warm: int) -> float:
    cache = sampler.CacheConfig(
        cache_size=work.PROMPT + work.NEW + 8, num_layers=30, num_kv_heads=3, head_dim=64
    )
    made = sampler.Sampler(model_of(folder), Ids(), cache)
    texts = [
        " ".join(map(str, ids[1:])) for ids in work.prompts(count) for _ in range(samples)
    ]  # it adds its own start
    lengths = {"max_generation_steps": work.NEW, "max_prompt_length": work.PROMPT}

    def run():
        made(texts, **lengths, temperature=1.0, top_p=1.0, seed=0, eos_tokens=[49151])

    return work.timed(run, warm=warm)


def training(folder: str) -> float:
    model, reference = model_of(folder), model_of(folder)
    prompt, own = work.prompts(work.PAIRS), work.completions(work.PAIRS)
    rows = [np.concatenate([prompt, own[:, side]], 1) for side in (0, 1)]
    ids = jnp.asarray(np.concatenate(rows))
    b, t = ids.shape
    mask = jnp.tril(jnp.ones((t, t), bool))[None].repeat(b, 0)
    positions, counted = jnp.arange(t)[None].repeat(b, 0), jnp.ones((b, work.NEW), jnp.int32)
    optimizer = nnx.Optimizer(model, optax.adamw(work.RATE), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, example):
        (loss, _), gradient = nnx.value_and_grad(lambda m: dpo_loss_fn(m, example), has_aux=True)(
            model
        )
        optimizer.update(model, gradient)
        return loss

    def run():
        chosen, rejected = compute_logps(reference, ids, positions, mask, work.NEW, counted)[:2]
        example = TrainExample(
            input_ids=ids,
            positions=positions,
            attention_mask=mask,
            ref_chosen_logps=chosen,
            ref_rejected_logps=rejected,
            completion_mask=counted,
            logits_to_keep=work.NEW,
        )
        assert np.isfinite(float(step(model, optimizer, example)))

    return work.timed(run)


def logprobs(folder: str) -> list[float]:
    own = jnp.asarray(work.completions(4)[:, 0])
    ids = jnp.concatenate([jnp.asarray(work.prompts(4)), own], 1)
    t = ids.shape[1]
    mask = jnp.tril(jnp.ones((t, t), bool))[None].repeat(4, 0)
    logits, _ = model_of(folder)(ids, jnp.arange(t)[None].repeat(4, 0), None, mask)
    logp = jax.nn.log_softmax(logits[:, work.PROMPT - 1 : -1].astype(jnp.float32))
    return jnp.take_along_axis(logp, own[..., None], -1)[..., 0].sum(-1).tolist()


if __name__ == "__main__":
    work.answer(
        {
            "logprobs": lambda folder: {"values": logprobs(folder)},
            "sample": lambda folder: {"seconds": sampling(folder, work.PROMPTS, work.SAMPLES, 1)},
            "queue": lambda folder: {
                "seconds": sampling(folder, work.QUEUE, work.QUEUE_SAMPLES, 0)
            },
            "train": lambda folder: {"seconds": training(folder)},
        }
    )
