"""Reward models: a decoder of any family with one output behind the last token
(`...ForSequenceClassification`)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ssppo_jax.data.chat import encode_chat
from ssppo_jax.distributed.mesh import abstract
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.models.decoder import Decoder, init_params
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.oracles.scorer import Scorer
from ssppo_jax.types import Failed, Prompt, PyTree, Verdict
from ssppo_jax.weights import hf
from ssppo_jax.weights.source import load_tokenizer, resolve
from ssppo_jax.weights.table import DTYPES


def reward_model(
    *,
    source: str = "",
    dtype: str = "float32",
    batch_size: int = 16,
    max_length: int = 2048,
    template: str = "model",
) -> Oracle:
    """The score of a Hugging Face sequence-classification head with one label. Rewards [B,K].

    A response is read as the assistant's answer in the model's own chat template; a special token
    it spells stays text. Longer than `max_length` is a failure of its prompt, never cut. Group
    losses take the rewards as they are, pair losses through the Bradley-Terry link at
    `oracle.reward_temperature`. Parameters are cut over the run's mesh as the policy's are, and
    responses over the axes of the batch.

    Args:
        source: a repo id or folder with config.json, safetensors and tokenizer.
        dtype: of parameters and compute, float32 or bfloat16.
        batch_size: responses scored at a time.
        max_length: tokens of prompt and response together.
        template: model (the tokenizer's own) or plain, as for prompts.

    Raises:
        ConfigError: a setting out of range, or a model that is no reward model of one output.
    """
    if dtype not in DTYPES:
        raise ConfigError(
            f"oracle reward_model: dtype={dtype!r} must be one of {', '.join(DTYPES)}"
        )
    for name, value in (("batch_size", batch_size), ("max_length", max_length)):
        if value < 1:
            raise ConfigError(f"oracle reward_model: {name}={value} must be at least 1")
    if not source:
        raise ConfigError(
            "oracle reward_model needs a model: --config.oracle.source=owner/name or a folder"
        )
    folder = resolve(source)
    arch = hf.read_arch(folder)
    if arch.num_labels != 1:
        what = f"{arch.num_labels} labels" if arch.num_labels else "no classification head"
        raise ConfigError(
            f"oracle reward_model: {source!r} has {what} (architectures in config.json); a reward"
            " model has one label"
        )
    if max_length > arch.max_positions:
        raise ConfigError(
            f"oracle reward_model: max_length={max_length} is beyond its {arch.max_positions}"
            " positions"
        )
    tokenizer = load_tokenizer(folder, vocab_size=arch.vocab_size)
    decoder = Decoder(arch, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
    scorer = Scorer(
        partial(scores, decoder),
        partial(_load, folder, decoder),
        batch_size=batch_size,
        longest=max_length,
    )

    def read(prompt: Prompt, text: str) -> list[int] | Failed:
        turns = [*prompt.messages, {"role": "assistant", "content": text}]
        try:
            ids = encode_chat(tokenizer, turns, template=template, answered=True).tolist()
        except DataError as error:
            return Failed(str(error))
        if len(ids) > max_length:
            return Failed(
                f"prompt and response are longer than max_length = {max_length} tokens of the"
                " reward model"
            )
        return ids

    def oracle(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        groups = [
            [read(p, text) for text in texts] for p, texts in zip(prompts, responses, strict=True)
        ]
        failed = tuple(
            next((ids for ids in group if isinstance(ids, Failed)), None) for group in groups
        )
        kept = [group for group, failure in zip(groups, failed, strict=True) if failure is None]
        k = len(responses[0])
        rewards = np.full((len(groups), k), np.nan, np.float32)
        rewards[[f is None for f in failed]] = scorer(
            [ids for group in kept for ids in group]
        ).reshape(len(kept), k)
        return Verdict(None, rewards, failed)

    oracle.on_device, oracle.place = True, scorer.place
    return oracle


def _load(folder: Path, decoder: Decoder, mesh: Mesh) -> PyTree:
    """The parameters, cut over the mesh as a policy's are."""
    shapes = jax.eval_shape(lambda: init_params(decoder, jax.random.key(0)))
    return hf.load_placed(folder, decoder.arch, abstract(mesh, shapes))


def scores(
    decoder: Decoder, params: PyTree, tokens: Any, length: Any
) -> Any:  # [R,S], [R] -> [R] float32
    """score(h of the last token), as transformers' sequence classification with one label."""
    states = decoder.apply({"params": params}, tokens, jnp.maximum(length, 1)).prompt
    last = jnp.take_along_axis(states, jnp.maximum(length - 1, 0)[:, None, None], axis=1)[:, 0]
    kernel = params["score"]["kernel"].astype(last.dtype)
    return jnp.dot(last, kernel, preferred_element_type=jnp.float32)[:, 0]


ORACLES = {"reward_model": reward_model}
