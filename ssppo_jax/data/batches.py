"""Turn prompts into token batches: encode once, address, pad to few lengths."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ssppo_jax.data.buckets import right_padded
from ssppo_jax.data.chat import DATE, encode_chat, opens_thinking
from ssppo_jax.errors import ConfigError, DataError, listed
from ssppo_jax.types import Prompt, Prompts

SHOWN = 20  # prompts listed in a report; the rest are counted


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """Hold a prompt, its ids, and the address of its random keys."""

    prompt: Prompt
    tokens: np.ndarray  # [L] int32
    address: np.uint32
    completions: tuple[np.ndarray, ...] = ()  # [T] int32 each: of responses that came with it


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Hold the (id, length) of prompts longer than `limit` tokens; str() is the report of them."""

    limit: int
    total: int
    rows: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        if not self.rows:
            return f"all {self.total} prompts have at most {self.limit} tokens"
        return (
            f"dropped {len(self.rows)} of {self.total} prompts longer than {self.limit} tokens:"
            f" {with_lengths(self.rows)}"
        )


def with_lengths(rows: Sequence[tuple[str, int]]) -> str:
    """Return the first ids with their lengths, and how many more there are."""
    shown = ", ".join(f"{name} ({length})" for name, length in rows[:SHOWN])
    return shown + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")


class PromptBatch(NamedTuple):
    """Hold a padded batch and where its rows came from; rows with `real` False repeat a row to
    fill.
    """

    prompts: Prompts
    real: np.ndarray  # [B] bool
    source: np.ndarray  # [B] int64, position in the list of prompts


class LengthGroup(NamedTuple):
    """Hold prompts that wait for the same slots."""

    width: int  # token slots of their prompts
    rows: np.ndarray  # positions in the list of prompts, the shortest first


def address(prompt_id: str) -> np.uint32:
    """Return where a prompt's random keys live: the CRC-32 of its id, the same on every machine."""
    return np.uint32(zlib.crc32(prompt_id.encode()))


def addresses(ids: Iterable[str]) -> dict[str, np.uint32]:
    """Return a distinct address for each id.

    Of 60,000 ids two share a CRC-32 in about one data set of three. Then the first in alphabetical
    order keeps it. The others take the CRC-32 of the id with a counter, so the result depends on
    the set of ids alone.
    """
    taken: dict[np.uint32, str] = {}
    for name in sorted(set(ids)):
        spot, tries = address(name), 0
        while spot in taken:
            tries += 1
            spot = address(f"{name}\0{tries}")
        taken[spot] = name
    return {name: spot for spot, name in taken.items()}


def encode_prompts(
    prompts: Sequence[Prompt],
    tokenizer: Any,
    *,
    max_prompt_length: int,
    template: str = "model",
    date: str = DATE,
) -> tuple[list[EncodedPrompt], Dropped]:
    """Encode every prompt once; drop and report those over `max_prompt_length`, never cut them.

    A prompt whose template opens the model's thinking gets `meta["opens_thinking"]`: an oracle
    cannot tell from the response alone that all of it may be thought.

    Args:
        prompts: from a source; ids unique.
        tokenizer: a transformers tokenizer.
        max_prompt_length: tokens a prompt may have, template included.
        template: "model", "plain" or a file, see `encode_chat`.
        date: what a template prints as today's, see `encode_chat`.

    Raises:
        DataError: the chat template refuses prompts (all are listed), or nothing is left.
    """
    spots = addresses(p.id for p in prompts)
    encoded, bad = [], []
    for prompt in prompts:
        try:
            tokens = encode_chat(tokenizer, prompt.messages, template=template, date=date)
            if opens_thinking(tokenizer, tokens):
                prompt = dataclasses.replace(prompt, meta=prompt.meta | {"opens_thinking": True})
            encoded.append(EncodedPrompt(prompt, tokens, spots[prompt.id]))
        except DataError as exc:
            bad.append(f"prompt {prompt.id!r}: {exc}")
    if bad:
        raise DataError("\n".join(listed(bad)))
    short = [e for e in encoded if len(e.tokens) <= max_prompt_length]
    long = tuple((e.prompt.id, len(e.tokens)) for e in encoded if len(e.tokens) > max_prompt_length)
    dropped = Dropped(max_prompt_length, len(prompts), long)
    if not short:
        raise DataError(f"no prompt is left: {dropped}; raise max_prompt_length")
    return short, dropped


def bucket_of(lengths: np.ndarray, buckets: Sequence[int]) -> int:
    """Return the smallest bucket that holds the longest of these."""
    return next(bucket for bucket in buckets if bucket >= lengths.max())


def length_groups(
    encoded: Sequence[EncodedPrompt], *, batch_size: int, buckets: Sequence[int]
) -> list[LengthGroup]:
    """Group prompts of similar lengths, one group per width.

    Prompts are sorted by length (ties in the given order) and cut every `batch_size`. Each cut gets
    the smallest bucket that holds its longest prompt, and cuts of one bucket form one group. A run
    so compiles one program per bucket, and only the end of the last group can leave a batch
    unfilled.

    Args:
        encoded: prompts with their ids.
        batch_size: rows of every batch.
        buckets: allowed padded lengths, increasing.

    Raises:
        ConfigError: batch size below 1, buckets not positive and increasing, or a prompt too long.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}; allowed: 1 or more")
    if not buckets or buckets[0] < 1 or any(a >= b for a, b in pairwise(buckets)):
        raise ConfigError(
            f"buckets={tuple(buckets)} must be positive and increasing, e.g. (64, 128, 256)"
        )
    lengths = np.array([len(e.tokens) for e in encoded], np.int32)
    if len(lengths) and lengths.max() > buckets[-1]:
        worst = encoded[int(lengths.argmax())].prompt.id
        raise ConfigError(
            f"prompt {worst!r} has {lengths.max()} tokens but the largest bucket is {buckets[-1]};"
            f" add a larger bucket or set max_prompt_length={buckets[-1]}"
        )
    order = np.argsort(lengths, kind="stable")
    found: list[LengthGroup] = []
    for cut in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
        width = bucket_of(lengths[cut], buckets)
        if found and found[-1].width == width:
            cut = np.concatenate([found.pop().rows, cut])
        found.append(LengthGroup(width, cut))
    return found


def pad_batch(
    encoded: Sequence[EncodedPrompt], rows: np.ndarray, batch_size: int, width: int
) -> PromptBatch:
    """Pad some rows of `encoded` to `width` slots and repeat them up to `batch_size` rows."""
    index = np.resize(rows, batch_size).astype(np.int64)  # np.resize repeats the rows
    chosen = [encoded[i] for i in index]
    tokens, length = right_padded((e.tokens for e in chosen), (batch_size, width))
    spots = np.array([e.address for e in chosen], np.uint32)
    return PromptBatch(Prompts(tokens, length, spots), np.arange(batch_size) < len(rows), index)
