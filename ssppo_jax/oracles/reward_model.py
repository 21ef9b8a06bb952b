"""Reward models: a decoder of any family with one output behind the last token, known to
transformers as `...ForSequenceClassification`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ssppo_jax.config import iso_date, one_of, positive
from ssppo_jax.data.chat import DATE, encode_chat
from ssppo_jax.distributed.mesh import abstract
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.models.decoder import Decoder, init_params
from ssppo_jax.oracles.protocol import Oracle, first_failure
from ssppo_jax.oracles.scorer import Scorer
from ssppo_jax.types import Failed, Prompt, PyTree, Verdict
from ssppo_jax.weights import hf
from ssppo_jax.weights.source import load_tokenizer, resolve
from ssppo_jax.weights.table import DTYPES


def reward_model(
    *,
    source: str = "",
    dtype: Annotated[str, one_of(*DTYPES)] = "float32",
    batch_size: Annotated[int, positive] = 16,
    max_length: Annotated[int, positive] = 2048,
    template: str = "model",
    date: Annotated[str, iso_date] = DATE,
) -> Oracle:
    """Reward with the score of a Hugging Face sequence-classification head with one label.

    Rewards [B,K]. A response is read as the assistant's answer in the model's own chat template; a
    special token it spells stays text. If prompt and response are longer than `max_length`, the
    prompt fails; nothing is cut. Group losses take the rewards as they are, pair losses through the
    Bradley-Terry link at `oracle.reward_temperature`. Parameters are sharded over the run's mesh as
    the policy's are, and responses over the axes of the batch.

    Args:
        source: a repo id or folder with config.json, safetensors and tokenizer.
        dtype: of parameters and compute, float32 or bfloat16.
        batch_size: responses scored at a time.
        max_length: tokens of prompt and response together.
        template: model (the tokenizer's own) or plain, as for prompts.
        date: date that a template prints as today's, so that rewards do not depend on the day.

    Raises:
        ConfigError: no model is named, it is no reward model of one output, or it reads fewer than
          `max_length` tokens.
    """
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
    if max_length > arch.reach:
        raise ConfigError(
            f"oracle reward_model: max_length={max_length} is beyond its {arch.reach} positions;"
            f" set --config.oracle.max_length={arch.reach} or less"
        )
    tokenizer = load_tokenizer(folder, vocab_size=arch.vocab_size)
    decoder = Decoder(arch, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
    scorer = Scorer(
        partial(scores, decoder),
        partial(_load, folder, decoder),
        batch_size=batch_size,
        longest=max_length,
        name=f"oracle reward_model {source!r}",
    )

    def read(prompt: Prompt, text: str) -> list[int] | Failed:
        turns = [*prompt.messages, {"role": "assistant", "content": text}]
        try:
            ids = encode_chat(
                tokenizer, turns, template=template, answered=True, date=date
            ).tolist()
        except DataError as error:
            return Failed(str(error))
        if len(ids) > max_length:
            return Failed(
                f"prompt and response are longer than max_length = {max_length} tokens of the"
                " reward model"
            )
        return ids

    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        groups = [
            [read(p, text) for text in texts] for p, texts in zip(prompts, responses, strict=True)
        ]
        failed = tuple(first_failure(group) for group in groups)
        kept = [b for b, failure in enumerate(failed) if failure is None]
        k = len(responses[0])
        rewards = np.full((len(groups), k), np.nan, np.float32)
        rows = [ids for b in kept for ids in groups[b] if not isinstance(ids, Failed)]
        rewards[kept] = scorer(rows).reshape(len(kept), k)
        return Verdict(None, rewards, failed)

    return Oracle(ask, place=scorer.place, on_device=True)


def _load(folder: Path, decoder: Decoder, mesh: Mesh) -> PyTree:
    """Return the parameters, sharded over the mesh as a policy's are."""
    shapes = jax.eval_shape(lambda: init_params(decoder, jax.random.key(0)))
    return hf.load_placed(folder, decoder.arch, abstract(mesh, shapes))


def scores(decoder: Decoder, params: PyTree, tokens: Any, length: Any) -> Any:
    """Return the score of the last token's state, as transformers' sequence classification with one
    label does: tokens [R,S] and length [R] to [R] float32."""
    out: Any = decoder.apply({"params": params}, tokens, jnp.maximum(length, 1))
    states = out.prompt
    last = jnp.take_along_axis(states, jnp.maximum(length - 1, 0)[:, None, None], axis=1)[:, 0]
    kernel = params["score"]["kernel"].astype(last.dtype)
    return jnp.dot(last, kernel, preferred_element_type=jnp.float32)[:, 0]


ORACLES = {"reward_model": reward_model}
