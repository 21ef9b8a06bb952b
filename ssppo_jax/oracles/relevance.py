"""Oracles of relevance: how much of a prompt is left in a response, by meaning or by words.

Both are known functions of the two texts. They see that an answer left its question; they do not
see that it is wrong. They stand for no human preference."""

from __future__ import annotations

import re
from typing import Annotated

import numpy as np

from ssppo_jax.config import positive
from ssppo_jax.oracles.embedder import SentenceEmbedder
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.types import Prompt, Verdict

STEM = 5  # letters; "sleeping" and "sleep" share them
# Words that say nothing of a topic, and the verbs that open an instruction.
_COMMON = """
about above after again against also although always among another anything because been before
being below between both cannot could does doing down during each else even ever every
everything few from further gave give given goes going gone have having help here hers herself
himself into itself just keep kept know like made make makes many maybe mine more most much must
myself need never nothing often once only other ours over please rather really said same should
since some someone something still such tell than that their theirs them themselves then there
these they thing things this those though three through told under until upon used very want
wants well were what when where whether which while whom whose will with within without would
your yours yourself
describe explain suggest write
"""
STOP = frozenset(_COMMON.split())


def relevance(
    *, encoder: str = "embedded:minilm", max_length: Annotated[int, positive] = 256
) -> Oracle:
    """Reward the cosine of a sentence encoder's vectors of the prompt and of the response.

    The prompt is the last user turn. Pair losses take the rewards through the Bradley-Terry link at
    `oracle.reward_temperature`; in `combine` at its own `temperature`.

    Args:
        encoder: embedded:minilm, a folder, or a repo id.
        max_length: word pieces read of each text.
    """
    embedder = SentenceEmbedder.load(encoder, max_length=max_length)

    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        k = len(responses[0])
        texts = [p.text for p in prompts] + [text for group in responses for text in group]
        vectors = embedder.embed(texts)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        asked, said = vectors[: len(prompts)], vectors[len(prompts) :]
        reward = np.einsum("bd,bkd->bk", asked, said.reshape(len(prompts), k, -1))
        return Verdict(None, reward.astype(np.float32), (None,) * len(prompts))

    return Oracle(ask, on_device=True)


def keywords() -> Oracle:
    """Reward the share of the prompt's keywords that the response takes up: |W(x) & W(y)| / |W(x)|.

    W are the words of four letters or more that are no common words (`STOP`), lower-cased and cut
    to their first five letters. It is ROUGE-1 recall of the prompt over such words. A prompt
    without any gives every response 1.
    """

    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        wanted = [stems(prompt.text) for prompt in prompts]
        reward = [
            [len(stems(text) & words) / len(words) if words else 1.0 for text in group]
            for words, group in zip(wanted, responses, strict=True)
        ]
        return Verdict(None, np.array(reward, np.float32), (None,) * len(prompts))

    return Oracle(ask)


def stems(text: str) -> frozenset[str]:
    """Return the keywords of a text, each cut to its first five letters."""
    words = re.findall(r"[^\W\d_]{4,}", text.lower())
    return frozenset(word[:STEM] for word in words if word not in STOP)


ORACLES = {"relevance": relevance, "keywords": keywords}
