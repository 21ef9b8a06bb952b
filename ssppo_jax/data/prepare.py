"""Load the prompts of a config, hold some out, and encode both parts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ssppo_jax import data
from ssppo_jax.config import OWN, bind, place_of
from ssppo_jax.data.batches import Dropped, EncodedPrompt, encode_prompts
from ssppo_jax.data.framing import framed
from ssppo_jax.data.order import History, Split, split_prompts
from ssppo_jax.data.sources import check_prompt
from ssppo_jax.errors import ConfigError, DataError, UserError, listed
from ssppo_jax.types import Prompt

log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """Prompts to train on, prompts held out, and an account of what was left out."""

    train: list[EncodedPrompt]
    heldout: list[EncodedPrompt]
    account: dict[str, Any]


def prepare_prompts(
    settings: Mapping[str, Any],
    tokenizer: Any,
    *,
    seed: int,
    history: History | None = None,
    heldout_settings: Mapping[str, Any] | None = None,
) -> Prepared:
    """Return the training and the held-out prompts of a configured source as token ids.

    Args:
        settings: the `data` node of a config: source, heldout, max_prompt_length, date.
        tokenizer: a transformers tokenizer.
        seed: decides which prompts are held out.
        history: what the runs behind the initial model were trained on; that is held out last.
        heldout_settings: how held-out prompts are framed, where that differs.

    Raises:
        ConfigError, DataError: see the source, `split_prompts` and `encode_prompts`.
    """
    split = _split(settings, seed, history)
    if split.seen:
        log.warning(
            "%d of %d held-out prompts were trained on by a run that made the initial model",
            len(split.seen),
            len(split.heldout),
        )
    train, dropped = encode(split.train, tokenizer, settings)
    heldout, dropped_heldout = encode(split.heldout, tokenizer, heldout_settings or settings)
    copies = list(split.duplicates)
    if copies:
        log.warning("left out %d training prompts that ask what a held-out one asks", len(copies))
    account = {
        "train_prompts": len(train),
        "heldout_prompts": len(heldout),
        "too_long": [*map(list, dropped.rows), *map(list, dropped_heldout.rows)],
        "copies_of_heldout": copies,
        "heldout_trained_before": list(split.seen),
    }
    return Prepared(train, heldout, account)


def prepare_heldout(
    settings: Mapping[str, Any], tokenizers: Sequence[Any], *, seed: int, history: History
) -> tuple[list[list[EncodedPrompt]], dict[str, Any]]:
    """Return the prompts to evaluate models on, as the ids of each tokenizer, and an account.

    A prompt that a model was trained on is left out, and so is one that a tokenizer makes too long.

    Args:
        settings: the `data` node of a config.
        tokenizers: one for each model.
        seed: decides which prompts are held out where the history does not.
        history: what the runs that made the models were trained on, and what they held out.

    Raises:
        ConfigError: a model was trained on every prompt. Also as `prepare_prompts`.
        DataError: no prompt is short enough for every tokenizer. Also as `prepare_prompts`.
    """
    split = _split(settings, seed, history)
    fresh = [p for p in split.heldout if p.id not in set(split.seen)]
    if not fresh:
        raise ConfigError(
            f"data.source {settings['source']['name']!r} holds no prompt that these models were not"
            " trained on; give another source, or models of another run"
        )
    if split.seen:
        log.warning(
            "left out %d of %d prompts that a model was trained on",
            len(split.seen),
            len(split.heldout),
        )
    if history.heldout:
        held = sum(p.id in history.heldout for p in fresh)
        log.info("%d of %d prompts are those that the models' runs held out", held, len(fresh))
    read = [encode(fresh, tokenizer, settings) for tokenizer in tokenizers]
    common = set.intersection(*({e.prompt.id for e in encoded} for encoded, _ in read))
    if not common:
        raise DataError("no prompt is short enough for every model; raise data.max_prompt_length")
    account = {
        "heldout_prompts": len(common),
        "too_long": [list(row) for row in sorted({row for _, long in read for row in long.rows})],
        "heldout_trained_before": list(split.seen),
    }
    return [[e for e in encoded if e.prompt.id in common] for encoded, _ in read], account


def load_prompts(source: Mapping[str, Any]) -> list[Prompt]:
    """Return the prompts of a `data.source` node.

    Raises:
      DataError: there is none; or a source of a user's file raised something, or returns what is no
        list of prompts.
    """
    name, load = source["name"], bind(data.SOURCES, source)
    own = OWN.fullmatch(name)
    try:
        made = load()
        prompts = list(made) if isinstance(made, Iterable) else None
    except UserError:
        raise
    except Exception as error:  # whatever a user's function can raise
        if own is None:
            raise
        told = f"{place_of(error, own['file'])}{type(error).__name__}: {error}"
        raise DataError(f"data source {name!r}: {told}") from error
    other = [made] if prompts is None else [p for p in prompts if not isinstance(p, Prompt)]
    if other or not prompts:
        found = f"a {type(other[0]).__name__}" if other else "no prompt"
        raise DataError(
            f"data source {name!r} gives {found}; a source returns a list of"
            " Prompt(id, messages, meta) of ssppo_jax.types"
        )
    return prompts


def _split(settings: Mapping[str, Any], seed: int, history: History | None) -> Split:
    prompts = load_prompts(settings["source"])
    _check(prompts, settings["source"]["name"])
    counts = Counter(prompt.id for prompt in prompts)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"data source {settings['source']['name']!r}: prompt ids must be unique;"
            f" {twice[0]!r} occurs {counts[twice[0]]} times ({len(twice)} ids in all)"
        )
    return split_prompts(prompts, heldout=settings["heldout"], seed=seed, history=history)


def encode(
    prompts: list[Prompt], tokenizer: Any, settings: Mapping[str, Any]
) -> tuple[list[EncodedPrompt], Dropped]:
    """Frame prompts and encode them as the `data` node of a config says; say which are too long."""
    encoded, dropped = encode_prompts(
        framed(prompts, settings),
        tokenizer,
        max_prompt_length=settings["max_prompt_length"],
        template=settings["template"],
        date=settings["date"],
    )
    if dropped.rows:
        log.warning("%s", dropped)
    return encoded, dropped


def _check(prompts: list[Prompt], source: str) -> None:
    """Check the prompts of any source, also of one that does not check its rows itself."""
    bad = []
    for prompt in prompts:
        try:
            check_prompt(prompt)
        except ValueError as error:
            bad.append(f"prompt {prompt.id!r}: {error}")
    if bad:
        raise DataError("\n".join([f"data source {source!r}:", *listed(bad)]))
