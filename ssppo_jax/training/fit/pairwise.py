"""Fit a PairRM: a DeBERTa that reads the prompt and both responses at once."""

from __future__ import annotations

import itertools
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssppo_jax.data import EncodedPrompt, addresses
from ssppo_jax.distributed.mesh import replicated
from ssppo_jax.errors import ConfigError
from ssppo_jax.models.deberta import Ranker
from ssppo_jax.oracles.judge_prompts import conversation
from ssppo_jax.oracles.pairrm import PairReader
from ssppo_jax.training.fit.head import Head, both_orders, no_logp, pair_batch
from ssppo_jax.types import Array, Failed, Policy, Prompt, PyTree
from ssppo_jax.weights.encoder import locate_encoder
from ssppo_jax.weights.ranker import open_ranker, save_ranker


def pairwise(config: ConfigDict, mesh: Mesh) -> Head:
    """Make a head on DeBERTa: the logit that the response shown first is better.

    `model.source` is a PairRM folder, which is fitted further, or a plain DeBERTa-v2 or -v3 folder
    with safetensors and tokenizer.json, which gets a new head and PairRM's markers. Parameters are
    whole on every device; rows are split over the batch axes.

    Raises:
      ConfigError: adapters, or parameters that are not float32.
    """
    if config.lora.rank:
        raise ConfigError("lora.rank: fit trains the whole model; set 0")
    if config.model.param_dtype != "float32":
        raise ConfigError(
            f"model.param_dtype={config.model.param_dtype}: a PairRM's parameters are float32; set"
            " that (model.dtype=bfloat16 computes in bfloat16)"
        )
    source = config.model.source
    if source.startswith(("embedded:", "random:")):
        raise ConfigError(
            f"model.source={source}: fit.head=pairwise begins from a DeBERTa-v2 or -v3; give its"
            " folder or repo id, such as microsoft/deberta-v3-large, or a PairRM's"
        )
    folder = locate_encoder(source)
    made = open_ranker(folder, dtype=config.model.dtype, seed=config.seed)
    arch = made.loaded.ranker.arch
    markers = (arch.source_id, arch.first_id, arch.second_id)
    reader = PairReader(folder, made.tokenizer, markers, config.data.max_prompt_length)
    whole = replicated(mesh)

    def place(shapes: PyTree) -> PyTree:
        return jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole), shapes
        )

    return Head(
        encode=lambda prompts: _encode(prompts, reader),
        rows=lambda encoded: pair_batch(encoded, config.oracle.reward_temperature, _both_orders),
        abstract=place(made.loaded.params),
        place=place,
        load=lambda: jax.device_put(made.loaded.params, whole),
        apply=make_logits(made.loaded.ranker),
        loss=both_orders,
        export=lambda params, to: save_ranker(params, made, to),
        oracle="pairrm",
        tempered=False,
    )


def make_logits(ranker: Ranker) -> Any:
    """Return apply(params, prompt, prompt_length, completion, mask) -> (Policy, None).

    A completion is a whole input of the ranker, markers included; the prompt is not read. The two
    are the two orders of a pair."""

    def apply(params: PyTree, prompt: Array, length: Array, completion: Array, mask: Array, **_):
        del prompt, length
        b, k, t = completion.shape
        tokens, own = completion.reshape(b * k, t), mask.sum(-1).astype(np.int32).reshape(b * k)
        logits = cast(Array, ranker.apply({"params": params}, tokens, own))
        return Policy(no_logp(mask), logits.reshape(b, k, 1)), None

    return apply


def _encode(
    prompts: list[Prompt], reader: PairReader
) -> tuple[list[EncodedPrompt], list[tuple[str, int | str]]]:
    """Encode every order of two responses; name the prompts that are too long for the ranker."""
    kept: list[EncodedPrompt] = []
    long: list[tuple[str, int | str]] = []
    spots = addresses(p.id for p in prompts)
    for prompt in prompts:
        assert prompt.given is not None
        ids = reader.pairs(conversation(prompt), prompt.given.texts, _orders(prompt))
        if isinstance(ids, Failed):
            long.append((prompt.id, ids.reason))
            continue
        rows = tuple(np.array(row, np.int32) for row in ids)
        kept.append(EncodedPrompt(prompt, np.zeros(1, np.int32), spots[prompt.id], rows))
    return kept, long


def _both_orders(e: EncodedPrompt, winner: int, loser: int) -> list[np.ndarray]:
    """Return the order of a pair with the winner first, and the one with the loser first."""
    orders = _orders(e.prompt)
    return [e.completions[orders.index(order)] for order in ((winner, loser), (loser, winner))]


def _orders(prompt: Prompt) -> list[tuple[int, int]]:
    """Return every order of two of a prompt's responses."""
    assert prompt.given is not None
    return list(itertools.permutations(range(len(prompt.given.texts)), 2))
