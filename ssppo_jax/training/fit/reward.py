"""Fit a reward model: a decoder of any family with one output behind the last token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssppo_jax.data import EncodedPrompt
from ssppo_jax.data.chat import eos_ids
from ssppo_jax.data.completions import encode_given
from ssppo_jax.data.prepare import encode
from ssppo_jax.distributed.mesh import abstract
from ssppo_jax.errors import ConfigError
from ssppo_jax.models.arch import Arch
from ssppo_jax.models.decoder import Decoder, Forward, init_params
from ssppo_jax.models.policy import pool
from ssppo_jax.runtime import make_decoder
from ssppo_jax.training.fit.head import Head, bradley_terry, no_logp, pair_batch
from ssppo_jax.types import Array, Batch, Policy, Prompt, PyTree
from ssppo_jax.weights import hf
from ssppo_jax.weights.source import load_tokenizer, resolve


def reward(config: ConfigDict, mesh: Mesh) -> Head:
    """Make a head on a decoder: r(x, y) is the score of the conversation's last token.

    The head begins at 0. A model that is a reward model already is fitted further. The folder is
    that of transformers' `...ForSequenceClassification` with one label.

    Raises:
      ConfigError: several labels, or adapters.
    """
    if config.lora.rank:
        raise ConfigError("lora.rank: fit trains the whole model; set 0")
    folder = resolve(config.model.source)
    own = hf.read_arch(folder)
    if own.num_labels > 1:
        raise ConfigError(
            f"model.source={config.model.source!r} has {own.num_labels} labels; a reward model has"
            " one"
        )
    arch = dataclasses.replace(own, num_labels=1)
    decoder = make_decoder(config, arch, mesh)
    tokenizer = load_tokenizer(folder, vocab_size=arch.vocab_size)
    eos = eos_ids(tokenizer, arch.eos_ids)

    def encode_pairs(
        prompts: list[Prompt],
    ) -> tuple[list[EncodedPrompt], list[tuple[str, int | str]]]:
        encoded, dropped = encode(prompts, tokenizer, config.data)
        found = encode_given(
            encoded,
            tokenizer,
            eos,
            max_new_tokens=config.sampling.max_new_tokens,
            template=config.data.template,
            date=config.data.date,
            whole=True,  # the oracle reads what the template writes behind the answer too
        )
        return found.encoded, [*dropped.rows, *found.too_long]

    def rows(encoded: Sequence[EncodedPrompt]) -> Batch:
        longest = max(len(ids) for e in encoded for ids in e.completions)
        return pair_batch(
            encoded,
            config.oracle.reward_temperature,
            lambda e, winner, loser: (e.completions[winner], e.completions[loser]),
            longest,
        )

    return Head(
        encode=encode_pairs,
        rows=rows,
        abstract=_shapes(decoder, mesh),
        place=lambda shapes: abstract(mesh, shapes),
        load=lambda: _load(folder, own, decoder, mesh),
        apply=make_score(decoder),
        loss=bradley_terry,
        export=lambda params, to: hf.save_params(
            params, arch, to, tokenizer_from=folder, replace=True
        ),
        oracle="reward_model",
        tempered=True,
    )


def make_score(decoder: Decoder) -> Any:
    """Return apply(params, prompt, prompt_length, completion, mask) -> (Policy, None).

    `Policy.hidden` [B,K,1] is the score of each completion's last token, its prompt computed once.
    """

    def apply(params: PyTree, prompt: Array, length: Array, completion: Array, mask: Array, **_):
        out = cast(Forward, decoder.apply({"params": params}, prompt, length, completion))
        last = pool(cast(Array, out.completion), mask, "last_token")
        kernel = params["score"]["kernel"].astype(last.dtype)
        score = jnp.dot(last, kernel, preferred_element_type=jnp.float32)
        return Policy(no_logp(mask), score), None

    return apply


def _load(folder: Path, own: Arch, decoder: Decoder, mesh: Mesh) -> PyTree:
    """Return placed parameters; the score of a language model is 0."""
    wanted = _shapes(decoder, mesh)
    if own.num_labels:
        return hf.load_placed(folder, own, wanted)
    tree = hf.load_placed(folder, own, _shapes(decoder.clone(arch=own), mesh))
    tree.pop("head", None)  # of the vocabulary
    score = wanted["score"]["kernel"]
    zeros = jax.jit(lambda: jnp.zeros(score.shape, score.dtype), out_shardings=score.sharding)
    return tree | {"score": {"kernel": zeros()}}


def _shapes(decoder: Decoder, mesh: Mesh) -> PyTree:
    return abstract(mesh, jax.eval_shape(lambda: init_params(decoder, jax.random.key(0))))
