"""Load the prompts of a config, hold some out, and encode both parts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from ssppo_jax import data
from ssppo_jax.config import bind
from ssppo_jax.data.batches import EncodedPrompt, encode_prompts
from ssppo_jax.data.order import split_prompts
from ssppo_jax.data.sources import SHOWN, check_prompt
from ssppo_jax.errors import DataError
from ssppo_jax.types import Prompt

log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """Prompts to train on, prompts held out, and an account of what was left out."""

    train: list[EncodedPrompt]
    heldout: list[EncodedPrompt]
    account: dict[str, Any]


def prepare_prompts(settings: Mapping[str, Any], tokenizer: Any, *, seed: int) -> Prepared:
    """Return the training and the held-out prompts of a configured source as token ids.

    Args:
        settings: the `data` node of a config: source, heldout, max_prompt_length.
        tokenizer: a transformers tokenizer.
        seed: decides which prompts are held out.

    Raises:
        ConfigError, DataError: see the source, `split_prompts` and `encode_prompts`.
    """
    prompts = bind(data.SOURCES, settings["source"])()
    _check(prompts, settings["source"]["name"])
    counts = Counter(prompt.id for prompt in prompts)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"data source {settings['source']['name']!r}: prompt ids must be unique;"
            f" {twice[0]!r} occurs {counts[twice[0]]} times ({len(twice)} ids in all)"
        )
    split = split_prompts(prompts, heldout=settings["heldout"], seed=seed)
    limit = settings["max_prompt_length"]
    train, dropped = encode_prompts(split.train, tokenizer, max_prompt_length=limit)
    heldout, dropped_heldout = encode_prompts(split.heldout, tokenizer, max_prompt_length=limit)
    for report in (dropped, dropped_heldout):
        if report.rows:
            log.warning("%s", report)
    copies = list(split.duplicates)
    if copies:
        log.warning("left out %d training prompts that repeat a held-out one", len(copies))
    account = {
        "train_prompts": len(train),
        "heldout_prompts": len(heldout),
        "too_long": [*map(list, dropped.rows), *map(list, dropped_heldout.rows)],
        "copies_of_heldout": copies,
    }
    return Prepared(train, heldout, account)


def _check(prompts: list[Prompt], source: str) -> None:
    """Check the prompts of any source, also of one that does not check its rows itself."""
    bad = []
    for prompt in prompts:
        try:
            check_prompt(prompt)
        except ValueError as error:
            bad.append(f"prompt {prompt.id!r}: {error}")
    if bad:
        more = [f"... and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        raise DataError("\n".join([f"data source {source!r}:", *bad[:SHOWN], *more]))
