"""Embed texts with a frozen sentence encoder, in few array shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from ssppo_jax.data.buckets import SHORTEST, buckets, padded
from ssppo_jax.errors import ConfigError, GateError
from ssppo_jax.types import Array, PyTree
from ssppo_jax.weights.encoder import load_encoder
from ssppo_jax.weights.table import read_tokenizer


class EmbedCounts(NamedTuple):
    """Count the texts that went through an embedder."""

    texts: int = 0
    truncated: int = 0  # texts cut at max_length word pieces
    empty: int = 0  # texts without a single word piece


class SentenceEmbedder:
    """Embed texts with a frozen encoder; `counts` says how many were cut or empty.

    A text's vector does not depend on the other texts of its batch: rows never mix, and masks come
    from lengths. A batch is padded to one of few shapes (powers of two from `shortest` to
    `max_length`, times two row counts). Equal texts of one call are embedded once.

    An empty text becomes the encoder's vector of "[CLS] [SEP]", as in sentence-transformers. Two
    empty responses therefore have cosine 1. Empty texts are counted.
    """

    def __init__(
        self,
        apply: Callable[..., Any],  # (params, tokens [R,S], length [R]) -> [R,D]
        params: PyTree,
        tokenizer: Tokenizer,
        *,
        max_length: int = 256,
        batch_size: int = 32,
        shortest: int | None = None,
        name: str = "the sentence encoder",
    ):
        """Make an embedder.

        `shortest` is the smallest shape's token slots. None means 16 on a CPU and `max_length`
        elsewhere, where compiling a shape costs more than its padding. `name` is for errors.
        """
        self._name = name
        specials = tokenizer.num_special_tokens_to_add(is_pair=False)
        if max_length <= specials:
            raise ConfigError(
                f"max_length={max_length} leaves no room beside {specials} special tokens; 256 is"
                " usual"
            )
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1")
        # a tokenizer.json may carry its own padding and limit (MiniLM's pads to 128)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        self._specials = specials
        self._tokenizer = tokenizer
        self._apply = jax.jit(apply)
        self._params = jax.device_put(params)
        self._max_length = max_length
        self._batch_size = batch_size
        self._shortest = shortest or (SHORTEST if jax.default_backend() == "cpu" else max_length)
        self.counts = EmbedCounts()

    @classmethod
    def load(
        cls,
        source: str = "embedded:minilm",
        *,
        max_length: int = 256,
        batch_size: int = 32,
        dtype: str = "float32",
    ) -> SentenceEmbedder:
        """Load the embedded MiniLM, a sentence-transformers folder or a Hugging Face repo id.

        Args:
            source: embedded:minilm (the paper's default encoder), a folder, or a repo id.
            max_length: word pieces of a text that are read, with special tokens; the rest is cut.
            batch_size: texts per encoder call.
            dtype: compute dtype of the encoder, float32 or bfloat16.

        Raises:
          ConfigError: max_length exceeds the encoder's positions, or as `weights.encoder` says.
        """
        loaded = load_encoder(source, dtype=dtype)
        positions = loaded.encoder.arch.positions
        if max_length > positions:
            raise ConfigError(
                f"max_length={max_length}, but the encoder {source!r} has {positions} positions"
            )

        def apply(params: PyTree, tokens: Array, length: Array) -> Any:
            return loaded.encoder.apply({"params": params}, tokens, length)

        return cls(
            apply,
            loaded.params,
            read_tokenizer(loaded.folder, loaded.encoder.arch.vocab_size),
            max_length=max_length,
            batch_size=batch_size,
            name=f"sentence encoder {source!r}",
        )

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return one vector per text, [R,D] float32, in the order given, and add to `counts`.

        Raises:
          GateError: a vector is not finite.
        """
        if not texts:
            raise ValueError("embed needs at least one text")
        unique = list(dict.fromkeys(texts))
        encodings = self._tokenizer.encode_batch(unique)
        row = {text: r for r, text in enumerate(unique)}
        rows = np.array([row[text] for text in texts])
        truncated = np.array([bool(e.overflowing) for e in encodings])[rows]
        empty = np.array([len(e.ids) <= self._specials for e in encodings])[rows]
        added = (len(texts), int(truncated.sum()), int(empty.sum()))
        self.counts = EmbedCounts(*(a + b for a, b in zip(self.counts, added, strict=True)))
        return self._embed_ids([e.ids for e in encodings])[rows]

    def take_counts(self) -> EmbedCounts:
        """Return the counts since the last call and reset them to zero."""
        counts, self.counts = self.counts, EmbedCounts()
        return counts

    def _embed_ids(self, ids: list[list[int]]) -> np.ndarray:  # [R,D]
        pending = []
        for rows, slots in buckets(
            [len(i) for i in ids], self._max_length, self._batch_size, self._shortest
        ):
            tokens, length = padded([ids[r] for r in rows], slots, self._batch_size)
            # Explicit put and get: implicit transfers raise inside the training loop's transfer
            # guard.
            pending.append((rows, self._apply(self._params, *jax.device_put((tokens, length)))))
        found = [jax.device_get(vectors)[: len(rows)] for rows, vectors in pending]
        out = np.zeros((len(ids), found[0].shape[1]), np.float32)
        out[np.concatenate([rows for rows, _ in pending])] = np.concatenate(found)
        bad = ~np.isfinite(out).all(-1)
        if bad.any():
            raise GateError(
                f"{self._name} gives {bad.sum()} of {len(out)} texts a vector that is not finite:"
                " its weights are damaged, or they overflow; load another copy"
            )
        return out
