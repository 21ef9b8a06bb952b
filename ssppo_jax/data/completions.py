"""Encode responses that came with their prompts, as the ids that a sampler would have drawn."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ssppo_jax.data.batches import EncodedPrompt, with_lengths
from ssppo_jax.data.chat import DATE, encode_chat
from ssppo_jax.errors import DataError, listed

log = logging.getLogger(__name__)


class Completed(NamedTuple):
    """Hold prompts whose responses are encoded, and those left out."""

    encoded: list[EncodedPrompt]
    too_long: tuple[tuple[str, int], ...]  # (id, tokens of the longest response)


def encode_given(
    encoded: Sequence[EncodedPrompt],
    tokenizer: Any,
    eos: Sequence[int],
    *,
    max_new_tokens: int,
    template: str = "model",
    date: str = DATE,
    whole: bool = False,
) -> Completed:
    """Encode the responses of every prompt; leave out and list those that have too many tokens.

    Args:
        encoded: prompts with `Prompt.given`.
        tokenizer: a transformers tokenizer.
        eos: ids that end a completion; the first is added where a template writes none.
        max_new_tokens: tokens that a response may have, the end token included; none is cut.
        template: as for the prompts.
        date: as for the prompts.
        whole: as `encode_response` has it.

    Raises:
        DataError: the chat template cannot write a response behind its prompt (all are listed), or
          every row is too long.
    """
    kept, long, bad = [], [], []
    for e in encoded:
        assert e.prompt.given is not None
        try:
            ids = tuple(
                encode_response(tokenizer, e, text, eos, template=template, date=date, whole=whole)
                for text in e.prompt.given.texts
            )
        except DataError as exc:
            bad.append(f"prompt {e.prompt.id!r}: {exc}")
            continue
        longest = max(map(len, ids))
        if longest > max_new_tokens:
            long.append((e.prompt.id, longest))
        else:
            kept.append(dataclasses.replace(e, completions=ids))
    if bad:
        raise DataError("\n".join(listed(bad)))
    if long:
        log.warning(
            "dropped %d of %d rows with a response longer than %d tokens: %s",
            len(long),
            len(encoded),
            max_new_tokens,
            with_lengths(long),
        )
    if encoded and not kept:
        raise DataError(
            f"every row has a response longer than sampling.max_new_tokens={max_new_tokens} tokens;"
            f" raise it (the shortest needs {min(n for _, n in long)}, the longest"
            f" {max(n for _, n in long)})"
        )
    return Completed(kept, tuple(long))


def encode_response(
    tokenizer: Any,
    e: EncodedPrompt,
    text: str,
    eos: Sequence[int],
    *,
    template: str = "model",
    date: str = DATE,
    whole: bool = False,
) -> np.ndarray:  # [T] int32
    """Return the ids that follow the prompt's where the template writes the answered conversation.

    They end with the end token. What a template writes behind it, such as a line break, is no part
    of a response, because sampling stops there. With `whole` it is kept, as a reader of the
    conversation sees it.

    Raises:
        DataError: the template does not begin an answered conversation with the prompt's ids.
    """
    turns = [*e.prompt.messages, {"role": "assistant", "content": text}]
    answered = encode_chat(tokenizer, turns, template=template, answered=True, date=date)
    start = len(e.tokens)
    if not np.array_equal(answered[:start], e.tokens):
        raise DataError(
            "the chat template writes an answered conversation otherwise than a prompt that waits"
            " for its answer, so the response has no ids of its own; give a template that only"
            " adds the answer"
        )
    ids = answered[start:]
    if whole:
        return ids
    ends = np.flatnonzero(np.isin(ids, np.asarray(eos)))
    if len(ends):
        return ids[: ends[0] + 1]
    rest = ids.tolist()
    while rest and not tokenizer.decode([rest[-1]]).strip():  # a line break behind the answer
        rest.pop()
    return np.asarray([*rest, eos[0]], np.int32)
