"""Decide which prompts are trained on, which are held out, and which belong to an iteration."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ssppo_jax.errors import ConfigError
from ssppo_jax.types import Prompt


class Split(NamedTuple):
    """Hold disjoint prompts, each part in hash order; `duplicates` repeat a held-out prompt."""

    train: list[Prompt]
    heldout: list[Prompt]
    duplicates: tuple[str, ...]  # ids


def split_prompts(prompts: Sequence[Prompt], *, heldout: int, seed: int) -> Split:
    """Hold out the `heldout` prompts with the smallest hash of (seed, id); file order does not
    matter.

    A training prompt whose turns equal a held-out prompt's, apart from case and spacing, is left
    out and named.

    Args:
        prompts: all prompts, ids unique.
        heldout: how many to hold out.
        seed: another seed holds out others.

    Raises:
        ConfigError: `heldout` is negative or leaves nothing to train on.
    """
    if not 0 <= heldout < len(prompts):
        raise ConfigError(
            f"data.heldout={heldout} of {len(prompts)} prompts; allowed: 0 to {len(prompts) - 1}"
        )
    ordered = sorted(prompts, key=lambda p: hashlib.sha256(f"{seed}:{p.id}".encode()).digest())
    out, rest = ordered[:heldout], ordered[heldout:]
    seen = {_normal(p) for p in out}
    train = [p for p in rest if _normal(p) not in seen]
    duplicates = tuple(p.id for p in rest if _normal(p) in seen)
    if not train:
        raise ConfigError(
            "every training prompt repeats a held-out one; nothing is left to train on"
        )
    return Split(train, out, duplicates)


def portion_sizes(count: int, *, portions: int, prompts_per_iteration: int = 0) -> list[int]:
    """Return how many prompts each of `portions` iterations has (see `portion`).

    Raises:
        ConfigError: more portions or prompts than there are.
    """
    size = prompts_per_iteration
    if size < 0 or size > count:
        raise ConfigError(
            f"prompts_per_iteration={size} with {count} training prompts; allowed: 0 to {count}"
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
    `portions` disjoint parts whose sizes differ by at most one. Iteration t takes part t. Otherwise
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
        ConfigError: more portions or prompts than there are, or an iteration past the last portion.
    """
    size = prompts_per_iteration
    sizes = portion_sizes(count, portions=portions, prompts_per_iteration=size)
    if size:
        epoch, step = divmod(iteration, count // size)
        start = epoch * count + step * size
        return _shuffled(count, seed, start, start + size)
    if not 0 <= iteration < portions:
        raise ConfigError(
            f"iteration {iteration} has no prompts of its own: there are {portions} portions; raise"
            " portions, or set prompts_per_iteration for repeated passes"
        )
    start = sum(sizes[:iteration])
    return _shuffled(count, seed, start, start + sizes[iteration])


def fingerprint(prompts: Sequence[Prompt], **settings: int | float | str | bool | tuple) -> str:
    """Digest (sha256) everything that decides which prompt an index means.

    Checkpoints store it. A resume with another fingerprint would train on other prompts.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for p in prompts:
        row = json.dumps(
            [p.id, p.messages, p.meta], sort_keys=True, default=lambda value: type(value).__name__
        )
        digest.update(b"\n" + row.encode())
    return digest.hexdigest()


def _shuffled(count: int, seed: int, start: int, stop: int) -> np.ndarray:
    import grain  # takes a second to import

    # Grain shuffles epoch e with seed + e: seeds 0 and 1 would share all passes but one. The hash
    # separates them.
    stream = (
        grain.MapDataset.range(count).shuffle(seed=zlib.crc32(f"order:{seed}".encode())).repeat()
    )
    return np.array([stream[i] for i in range(start, stop)], np.int64)


def _normal(prompt: Prompt) -> tuple:
    return tuple((m["role"], " ".join(m["content"].casefold().split())) for m in prompt.messages)
