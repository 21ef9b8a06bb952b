"""Decide which prompts are trained on, which are held out, and which belong to an iteration."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ssppo_jax.data.batches import EncodedPrompt
from ssppo_jax.errors import ConfigError
from ssppo_jax.types import Prompt

_STYLE = str.maketrans("‘’“”‐‑–—−", "''\"\"-----")  # quotes and dashes, to those of ASCII
_SENTENCE_END = re.compile(r"(?<=\w)[.,;:!?]+(?=\s|$)")
_OPERATOR = re.compile(r"(?<=\w)\s*([^\w\s])\s*(?=\w)")  # one symbol between two words
_NUMBER, _BOUND = r"\d+(?:\.\d+)?", r"[\w.+*×/^-]"  # what binds an operand to something else
_CHAIN = re.compile(rf"(?<!{_BOUND}){_NUMBER}([+*×]){_NUMBER}(?:\1{_NUMBER})*(?!{_BOUND})")


class Split(NamedTuple):
    """Hold disjoint prompts, each part in hash order."""

    train: list[Prompt]
    heldout: list[Prompt]
    duplicates: tuple[str, ...]  # ids left out of training: they ask what a held-out prompt asks
    seen: tuple[str, ...]  # ids of held-out prompts that an earlier run was trained on


class History(NamedTuple):
    """Hold what earlier runs did with questions, by their digests (`question`)."""

    trained: frozenset[str] = frozenset()
    heldout: Mapping[str, str] = MappingProxyType({})  # prompt id -> digest


def split_prompts(
    prompts: Sequence[Prompt], *, heldout: int, seed: int, history: History | None = None
) -> Split:
    """Hold out the `heldout` prompts with the smallest hash of (seed, id); file order does not
    matter.

    A training prompt that asks what a held-out prompt asks (`question`) is left out and named, so
    no question is on both sides. With a history, prompts that were held out come first and those
    that were trained on come last.

    Args:
        prompts: all prompts, ids unique.
        heldout: how many to hold out.
        seed: another seed holds out others.
        history: of the runs that made the model.

    Raises:
        ConfigError: `heldout` is negative or leaves nothing to train on.
    """
    if not 0 <= heldout < len(prompts):
        few = "; give at least 2 prompts" if len(prompts) < 2 else ""
        raise ConfigError(
            f"data.heldout={heldout} of {len(prompts)} prompts; allowed: 0 to"
            f" {len(prompts) - 1}{few}"
        )
    trained, before = history or History()
    asked = {p.id: question(p) for p in prompts}

    def place(p: Prompt) -> tuple[bool, bool, bytes]:
        known = before.get(p.id) == asked[p.id]
        return asked[p.id] in trained, not known, hashlib.sha256(f"{seed}:{p.id}".encode()).digest()

    ordered = sorted(prompts, key=place)
    out, rest = ordered[:heldout], ordered[heldout:]
    held = {asked[p.id] for p in out}
    train = [p for p in rest if asked[p.id] not in held]
    duplicates = tuple(p.id for p in rest if asked[p.id] in held)
    if not train:
        raise ConfigError(
            "every training prompt repeats a held-out one; nothing is left to train on"
        )
    return Split(train, out, duplicates, tuple(p.id for p in out if asked[p.id] in trained))


def question(prompt: Prompt) -> str:
    """Return a digest of what a prompt asks, 16 hex digits: equal for twins.

    A task's own canonical form decides where there is one. Otherwise the turns do, apart from case,
    spacing, punctuation that ends a clause, the style of quotes and dashes, and the order of plain
    numbers in a sum or a product ("3 + 5" and "5 + 3").
    """
    return hashlib.sha256(asked(prompt).encode()).hexdigest()[:16]


def asked(prompt: Prompt) -> str:
    """Return the text that `question` digests."""
    return prompt.canonical or json.dumps(
        [[m["role"], _normal(m["content"])] for m in prompt.messages]
    )


def portion_sizes(count: int, *, portions: int, prompts_per_iteration: int = 0) -> list[int]:
    """Return how many prompts each of `portions` iterations has (see `portion`).

    Raises:
        ConfigError: more portions or prompts than there are.
    """
    size = prompts_per_iteration
    if size < 0 or size > count:
        raise ConfigError(
            f"train.prompts_per_iteration={size} with {count} training prompts, beside those that"
            f" data.heldout keeps out; allowed: 0 (all of them) to {count}"
        )
    if size:
        return [size] * portions
    if not 1 <= portions <= count:
        raise ConfigError(
            f"portions={portions} with {count} training prompts; allowed: 1 to {count}"
        )
    cuts = [t * count // portions for t in range(portions + 1)]
    return [stop - start for start, stop in pairwise(cuts)]


def portion(
    iteration: int, count: int, *, portions: int = 3, prompts_per_iteration: int = 0, seed: int = 0
) -> np.ndarray:  # [M] int64
    """Return the indices of one iteration's prompts, a pure function of the iteration number.

    With prompts_per_iteration = 0, the papers' setting, the prompts are shuffled once and cut into
    `portions` disjoint parts whose sizes differ by at most one. Iteration t takes part t. A run
    that was made longer passes over the parts again, shuffled anew. Otherwise
    iterations pass over the prompts, each pass shuffled anew. A pass has count //
    prompts_per_iteration iterations, and the remainder sits it out, so that no iteration meets a
    prompt twice: random keys are addressed by iteration and id, so its samples would be the same.

    Args:
        iteration: from 0.
        count: prompts in all.
        portions: disjoint parts, one per iteration (used when prompts_per_iteration is 0).
        prompts_per_iteration: prompts of an iteration in the online setting; 0: disjoint parts.
        seed: of the shuffle.

    Raises:
        ConfigError: more portions or prompts than there are.
    """
    size = prompts_per_iteration
    sizes = portion_sizes(count, portions=portions, prompts_per_iteration=size)
    if size:
        epoch, step = divmod(iteration, count // size)
        start = epoch * count + step * size
        return _shuffled(count, seed, start, start + size)
    epoch, part = divmod(iteration, portions)
    start = epoch * count + sum(sizes[:part])
    return _shuffled(count, seed, start, start + sizes[part])


def fingerprint(
    encoded: Sequence[EncodedPrompt], **settings: int | float | str | bool | tuple
) -> str:
    """Digest (sha256) everything that decides which prompt an index means, token ids included.

    Checkpoints store it. A resume with another fingerprint would train on other prompts. The same
    messages become other ids when the tokenizer or its chat template changes.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for e in encoded:
        row = json.dumps(
            [e.prompt.id, e.prompt.messages, e.prompt.meta, e.tokens.tolist()],
            sort_keys=True,
            default=lambda value: type(value).__name__,
        )
        digest.update(b"\n" + row.encode())
        if e.prompt.given is not None:
            given = [dataclasses.asdict(e.prompt.given), [ids.tolist() for ids in e.completions]]
            digest.update(json.dumps(given, sort_keys=True).encode())
    return digest.hexdigest()


def _shuffled(count: int, seed: int, start: int, stop: int) -> np.ndarray:
    import grain  # takes a second to import

    # Grain shuffles epoch e with seed + e: seeds 0 and 1 would share all passes but one. The hash
    # separates them.
    stream = (
        grain.MapDataset.range(count).shuffle(seed=zlib.crc32(f"order:{seed}".encode())).repeat()
    )
    return np.array([stream[i] for i in range(start, stop)], np.int64)


def _normal(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).translate(_STYLE).casefold()
    text = " ".join(_OPERATOR.sub(r"\1", _SENTENCE_END.sub("", text)).split())
    return _CHAIN.sub(lambda found: found[1].join(sorted(found[0].split(found[1]))), text)


def epoch_batches(config: ConfigDict, iteration: int, rows: int) -> list[np.ndarray]:
    """Return the row indices of every optimizer step, shuffled by (seed, iteration, epoch)."""
    size, steps = config.train.batch_size, []
    for epoch in range(config.train.epochs):
        order = np.random.default_rng([config.seed, iteration, epoch]).permutation(rows)
        steps += [order[i : i + size] for i in range(0, rows, size)]
    return steps
