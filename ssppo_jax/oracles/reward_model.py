"""Reward models: a decoder of any family with one output behind the last token (`...ForSequenceClassification`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ssppo_jax.buckets import buckets, padded
from ssppo_jax.chat import encode_chat
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.models.arch import Arch
from ssppo_jax.models.decoder import Decoder
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.parallel import constrainer, make_mesh, put_rows, shardings
from ssppo_jax.types import Failed, Prompt, PyTree, Verdict
from ssppo_jax.weights import hf
from ssppo_jax.weights.source import load_tokenizer, resolve
from ssppo_jax.weights.table import DTYPES


def reward_model(
    *, source: str = "", dtype: str = "float32", batch_size: int = 16, max_length: int = 2048, template: str = "model"
) -> Oracle:
    """The score of a Hugging Face sequence-classification head with one label. Rewards [B,K].

    A response is read as the assistant's answer in the model's own chat template; a special token it spells stays
    text. Longer than `max_length` is a failure of its prompt, never cut. Group losses take the rewards as they are,
    pair losses through the Bradley-Terry link at `judge.reward_temperature`. Parameters are cut over the run's mesh
    as the policy's are, and responses over the axes of the batch.

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
        raise ConfigError(f"oracle reward_model: dtype={dtype!r} must be one of {', '.join(DTYPES)}")
    for name, value in (("batch_size", batch_size), ("max_length", max_length)):
        if value < 1:
            raise ConfigError(f"oracle reward_model: {name}={value} must be at least 1")
    if not source:
        raise ConfigError("oracle reward_model needs a model: --config.oracle.source=owner/name or a folder")
    folder = resolve(source)
    arch = hf.read_arch(folder)
    if arch.num_labels != 1:
        what = f"{arch.num_labels} labels" if arch.num_labels else "no classification head"
        raise ConfigError(
            f"oracle reward_model: {source!r} has {what} (architectures in config.json); a reward model has one label"
        )
    if max_length > arch.max_positions:
        raise ConfigError(f"oracle reward_model: max_length={max_length} is beyond its {arch.max_positions} positions")
    tokenizer = load_tokenizer(folder, vocab_size=arch.vocab_size)
    scorer = _Scorer(folder, arch, dtype, batch_size, max_length)

    def read(prompt: Prompt, text: str) -> list[int] | Failed:
        turns = [*prompt.messages, {"role": "assistant", "content": text}]
        try:
            ids = encode_chat(tokenizer, turns, template=template, answered=True).tolist()
        except DataError as error:
            return Failed(str(error))
        if len(ids) > max_length:
            return Failed(f"prompt and response are longer than max_length = {max_length} tokens of the reward model")
        return ids

    def oracle(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        groups = [[read(p, text) for text in texts] for p, texts in zip(prompts, responses, strict=True)]
        failed = tuple(next((ids for ids in group if isinstance(ids, Failed)), None) for group in groups)
        kept = [group for group, failure in zip(groups, failed, strict=True) if failure is None]
        k = len(responses[0])
        rewards = np.full((len(groups), k), np.nan, np.float32)
        rewards[[f is None for f in failed]] = scorer([ids for group in kept for ids in group]).reshape(len(kept), k)
        return Verdict(None, rewards, failed)

    oracle.on_device, oracle.place = True, scorer.place
    return oracle


class _Scorer:
    """Scores of many texts, in buckets of like length. The parameters are loaded at the first, straight into place."""

    def __init__(self, folder: Path, arch: Arch, dtype: str, batch_size: int, max_length: int):
        self.folder, self.arch, self.dtype = folder, arch, jnp.dtype(dtype)
        self.batch_size, self.max_length = batch_size, max_length
        self.mesh, self.params, self.apply = None, None, None

    def place(self, mesh: Mesh) -> None:
        """Score on this mesh."""
        self.mesh, self.params = mesh, None

    def __call__(self, ids: list[list[int]]) -> np.ndarray:  # [R] float32
        if self.params is None:
            self._load()
        out, pending = np.zeros(len(ids), np.float32), []
        for rows, slots in buckets([len(i) for i in ids], self.max_length, self.batch_size):
            batch = padded([ids[r] for r in rows], slots, self.batch_size, few=False)
            pending.append((rows, self.apply(self.params, *put_rows(self.mesh, batch))))
        for rows, scores in pending:
            out[rows] = jax.device_get(scores)[: len(rows)]
        return out

    def _load(self) -> None:
        self.mesh = self.mesh or make_mesh((1, 1, 1), devices=jax.devices()[:1])
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        self.batch_size = -(-self.batch_size // ways) * ways
        decoder = Decoder(self.arch, dtype=self.dtype, param_dtype=self.dtype, constrain=constrainer(self.mesh))
        self.params = self._params(decoder)
        self.apply = jax.jit(lambda params, tokens, length: scores(decoder, params, tokens, length))

    def _params(self, decoder: Decoder) -> PyTree:
        tokens, length = jnp.zeros((1, 2), jnp.int32), jnp.ones((1,), jnp.int32)
        shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), tokens, length)["params"])
        cut = dict(hf.flatten(shardings(self.mesh, shapes)))

        def put(path: str, array: np.ndarray) -> Any:
            return jax.device_put(array, cut[path])

        return hf.load_params(self.folder, self.arch, dtype=self.dtype, put=put)


def scores(decoder: Decoder, params: PyTree, tokens: Any, length: Any) -> Any:  # [R,S], [R] -> [R] float32
    """score(h of the last token), as transformers' sequence classification with one label."""
    states = decoder.apply({"params": params}, tokens, jnp.maximum(length, 1)).prompt
    last = jnp.take_along_axis(states, jnp.maximum(length - 1, 0)[:, None, None], axis=1)[:, 0]
    kernel = params["score"]["kernel"].astype(last.dtype)
    return jnp.dot(last, kernel, preferred_element_type=jnp.float32)[:, 0]


ORACLES = {"reward_model": reward_model}
