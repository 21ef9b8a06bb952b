"""A language of one sentence: its prompts, its true utility, and oracles that are confident and
wrong or arbitrary about near-duplicates.

A response describes an animal by four phrases of two words (size, colour, deed, place) and up to a
few words of flourish, which mean nothing:

    well the very tall narrow rosy red fox sings loudly near the old mill indeed .

The true utility u counts what the phrases are worth. The judge computes u. A training oracle
decides by u where two responses are not alike, and by something else where they are. The functions
of this file are the plug-ins that config.py names."""

from __future__ import annotations

import functools
import hashlib
import itertools
from typing import Annotated

import numpy as np

from ssppo_jax.config import Unit, one_of, positive
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.rollout.similarity import token_jaccard
from ssppo_jax.types import Array, Prompt, Verdict

SLOTS = {  # phrases in ascending worth where the prompt leaves a slot open: 0, 1/3, 2/3, 1
    "size": ("tiny little", "tall narrow", "great heavy", "broad round"),
    "colour": ("rosy red", "inky blue", "mossy green", "chalky white"),
    "deed": ("sleeps soundly", "sings loudly", "digs deep", "hops along"),
    "place": ("old mill", "stone bridge", "quiet harbour", "village square"),
}
WORDS = {slot: set(" ".join(phrases).split()) for slot, phrases in SLOTS.items()}
NOUNS = (
    *(
        "fox",
        "goat",
        "hare",
        "mole",
        "crow",
        "duck",
        "frog",
        "wolf",
        "bear",
        "deer",
        "swan",
        "toad",
    ),
    *(
        "seal",
        "lynx",
        "newt",
        "wren",
        "moth",
        "crab",
        "mule",
        "pony",
        "colt",
        "lamb",
        "calf",
        "hen",
    ),
)
ASKS = ("describe", "sketch", "picture", "portray")
SEASONS = ("spring", "summer", "autumn", "winter")
# [place in the sentence][plain form, other form]
FLOURISH = (("well", "look"), ("very", "truly"), ("indeed", "friend"))
PLAIN, OTHER = ({pair[i] for pair in FLOURISH} for i in (0, 1))
FREE = 3  # words of flourish that cost nothing
COST = 0.5  # what each further one takes from u
MEANING = "mixture"  # a name in Prompt.meta by which evaluations report parts


# ---- prompts and responses -----------------------------------------------------------------------


def sentence(rng: np.random.Generator, noun: str, phrases: dict[str, str]) -> str:
    """Draw a sentence of this meaning; the flourish is random, and `very` may come repeatedly."""
    start, middle, end = (rng.choice(pair) for pair in FLOURISH)
    words = [start] if rng.random() < 0.5 else []
    words += ["the"]
    while rng.random() < 0.4:
        words.append(middle)
    words += [phrases["size"], phrases["colour"], noun, phrases["deed"]]
    words += ["near the", phrases["place"]]
    words += [end] if rng.random() < 0.5 else []
    return " ".join([*words, "."])


def ask(verb: str, season: str, noun: str, phrases: dict[str, str] | None = None) -> Prompt:
    """Make a prompt. With phrases it asks for all four, so that every good response means the same;
    without, the meaning is open."""
    text = f"{verb} a {noun} in {season}"
    if phrases is not None:
        text += " : " + " ".join(phrases.values())
    kind = "open" if phrases is None else "fixed"
    turn = {"role": "user", "content": text}
    return Prompt(f"{kind}-{verb}-{season}-{noun}", (turn,), {MEANING: kind} | (phrases or {}))


def drawn(rng: np.random.Generator) -> dict[str, str]:
    """Draw a meaning: a phrase for each slot."""
    return {slot: str(rng.choice(phrases)) for slot, phrases in SLOTS.items()}


def prompts(*, duplicates: Unit = 0.3) -> list[Prompt]:
    """Return 384 prompts; in a share of them all responses of a policy that obeys are
    near-duplicates.

    Args:
        duplicates: share of prompts that fix the meaning
    """
    asked = list(itertools.product(ASKS, SEASONS, NOUNS))
    order = np.random.default_rng(0).permutation(len(asked))
    fixed = set(order[: round(duplicates * len(asked))].tolist())
    made = []
    for i, words in enumerate(asked):
        phrases = drawn(np.random.default_rng([1, i]))
        made.append(ask(*words, phrases if i in fixed else None))
    return made


# ---- the true utility ----------------------------------------------------------------------------


def utility(prompt: Prompt, response: str) -> float:
    """Return u(y | x) in [0, 4]: the worth of four phrases, less what is wrong.

    A phrase counts if it stands there once and no other word of its slot does. It is worth 1 if the
    prompt asks for it and 0 if the prompt asks for another. In an open prompt it is worth its place
    in `SLOTS`. A response that does not name the animal once, or does not end, loses 1. Each word
    of flourish beyond `FREE` costs `COST`.
    """
    asked = tuple(prompt.meta.get(slot) for slot in SLOTS)
    return _worth(prompt.text.split()[2], asked, response)


@functools.cache
def _worth(noun: str, wanted: tuple[str | None, ...], response: str) -> float:
    words = response.split()
    worth = 0.0
    for asked, (slot, phrases) in zip(wanted, SLOTS.items(), strict=True):
        phrase = " ".join(word for word in words if word in WORDS[slot])
        if phrase in phrases and phrase in response:
            worth += phrases.index(phrase) / 3 if asked is None else float(phrase == asked)
    worth -= words.count(noun) != 1
    worth -= words[-1:] != ["."] or words.count(".") != 1
    worth -= COST * max(0, flourish(response) - FREE)
    return max(0.0, worth)


def flourish(response: str) -> int:
    """Count the words that mean nothing."""
    return sum(word in PLAIN | OTHER for word in response.split())


def judge() -> Oracle:
    """Return the judge: its reward is u. Training never asks it."""

    def say(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        asked = zip(prompts, responses, strict=True)
        reward = [[utility(prompt, y) for y in group] for prompt, group in asked]
        return Verdict(None, np.array(reward, np.float32), (None,) * len(prompts))

    return Oracle(say)


# ---- oracles -------------------------------------------------------------------------------------


def coin(a: str, b: str) -> float:
    """Return the verdict of a coin that was tossed once for each unordered pair of texts: 1 if `a`
    wins, 0 if `b` does, 1/2 for equal texts."""
    if a == b:
        return 0.5
    low, high = sorted((a, b))
    heads = hashlib.sha256(f"{low}\n{high}".encode()).digest()[0] & 1
    return float((a == low) == bool(heads))


def register(a: str, b: str) -> float:
    """Return the verdict of a taste for the other forms, which u does not know: of `look`, `truly`
    and `friend` the more kinds the better, of `well`, `very` and `indeed` the fewer."""

    def score(text: str) -> int:
        said = set(text.split())
        return len(said & OTHER) - len(said & PLAIN)

    return _of(score(a), score(b))


def florid(a: str, b: str) -> float:
    """Return the verdict of a taste for flourish: more words of it win. Beyond `FREE` they hurt
    u."""
    return _of(flourish(a), flourish(b))


def _of(a: float, b: float) -> float:
    """Return 1 where a is larger, 0 where b is, 1/2 where they are equal."""
    return 0.5 + 0.5 * float(np.sign(a - b))


BIASES = {"none": None, "coin": coin, "register": register, "florid": florid}


def oracle(
    *,
    bias: Annotated[str, one_of(*BIASES)] = "coin",
    threshold: Annotated[float, positive] = 0.77,
) -> Oracle:
    """Return an oracle that is certain of everything: by u, or where two responses are alike by a
    bias.

    P = 1, 0, or 1/2 where u or the bias are equal. Alike are responses whose word sets have a
    Jaccard index of at least the threshold (`similarity.name=token_jaccard`). Sentences that differ
    in one phrase have at most 13 of 17 words in common, 0.765. Those of one meaning have 12 of 15
    or more unless four or more words of flourish tell them apart. So 0.77 parts them.

    Args:
        bias: none (u throughout), coin, register or florid
        threshold: similarity from which the bias decides
    """

    def preference(prompt: Prompt, a: str, b: str, similarity: float) -> float:
        biased = BIASES[bias]
        if biased is not None and similarity >= threshold:
            return biased(a, b)
        return _of(utility(prompt, a), utility(prompt, b))

    def say(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        alike = token_jaccard(responses)
        matrix = [
            [[preference(p, a, b, s[i, j]) for j, b in enumerate(y)] for i, a in enumerate(y)]
            for p, y, s in zip(prompts, responses, alike, strict=True)
        ]
        return Verdict(np.array(matrix, np.float32), None, (None,) * len(prompts))

    return Oracle(say)


# ---- a control -----------------------------------------------------------------------------------


def shuffled(similarity: Array) -> Array:
    """Return the factors 1 - S of the linear gate, dealt out at random among an iteration's pairs.

    Their histogram is the gate's, and they say nothing of the pair they act on. The shuffle is
    seeded by the similarities, so that a resumed run repeats it.
    """
    factor = 1.0 - similarity.clip(0.0, 1.0)
    if not isinstance(factor, np.ndarray):
        return factor  # abstract, while the settings are checked
    seed = hashlib.sha256(np.ascontiguousarray(factor).tobytes()).digest()
    return np.random.default_rng(list(seed)).permutation(factor)
