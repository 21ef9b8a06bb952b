"""The words in which a language model is asked to judge two responses, and how its verdict is read.

Pure functions. Two styles, after the benchmarks' designs in our own words:

    alpaca_eval   one token, m or M, names the better one; its probabilities are the verdict
    mt_bench      compares, then ends in [[A]], [[B]] or, for a tie, [[C]]
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ssppo_jax.types import Prompt

Messages = list[dict[str, str]]


class Style(NamedTuple):
    """One way of asking. `first`, `second` and `tie` are the words a verdict may be."""

    system: str
    question: str  # with {conversation}, {first} and {second}
    first: str
    second: str
    tie: str | None
    verdict: re.Pattern  # its last match's group 1 is the verdict


STYLES = {
    "alpaca_eval": Style(
        system=(
            "You compare the outputs of two language models and say which one a careful person"
            " would prefer. Judge helpfulness, accuracy and clarity; neither the order of the"
            " outputs nor their length decides."
        ),
        question=(
            "The instruction:\n<instruction>\n{conversation}\n</instruction>\n\nOutput of model"
            " m:\n<output>\n{first}\n</output>\n\nOutput of model"
            " M:\n<output>\n{second}\n</output>\n\nWhich output is better? Answer with the model's"
            " name and nothing else: m or M."
        ),
        first="m",
        second="M",
        tie=None,
        verdict=re.compile(r"^\W*([mM])\W*$"),
    ),
    "mt_bench": Style(
        system=(
            "You are an impartial judge of two assistants' answers to the same user. Weigh"
            " helpfulness, relevance, accuracy, depth and detail. The order of presentation, the"
            " length and the names must not sway you. Compare them in a few sentences, then give"
            " your verdict on the last line, exactly one of: [[A]] if assistant A is better, [[B]]"
            " if assistant B is better, [[C]] for a tie."
        ),
        question=(
            "[User]\n{conversation}\n\n[Answer of assistant A]\n{first}\n[End of answer A]\n\n"
            "[Answer of assistant B]\n{second}\n[End of answer B]"
        ),
        first="A",
        second="B",
        tie="C",
        verdict=re.compile(r"\[\[([ABC])\]\]"),
    ),
}


def messages_of(style: Style, prompt: Prompt, first: str, second: str) -> Messages:
    """Return the chat that asks for a verdict on two responses in this order."""
    fields = {"conversation": conversation(prompt), "first": first, "second": second}
    # one pass, so braces in the texts stay
    asked = re.sub(r"\{(conversation|first|second)\}", lambda m: fields[m[1]], style.question)
    return [{"role": "system", "content": style.system}, {"role": "user", "content": asked}]


def conversation(prompt: Prompt) -> str:
    """Return the user's turn alone, or all turns with their roles."""
    if len(prompt.messages) == 1:
        return prompt.text
    return "\n\n".join(
        f"{turn['role'].capitalize()}: {turn['content']}" for turn in prompt.messages
    )


def probability(
    style: Style, text: str, tokens: Sequence[Mapping[str, Any]] | None
) -> float | None:
    """Return P(the first is better), from the verdict token's probabilities or else from the words;
    None without a verdict.

    Among the alternatives of the token that is the verdict, those that are verdicts share the
    probability; a tie counts half for each.

    Args:
        style: how the judge was asked.
        text: its reply.
        tokens: `logprobs.content` of an OpenAI reply, if there is one.
    """
    found = list(style.verdict.finditer(text))
    if not found:
        return None
    said = found[-1][1]
    weight = {name: 0.0 for name in (style.first, style.second, style.tie) if name}
    for other in _at_verdict(said, tokens or ()):
        name = str(other["token"]).strip()
        if name in weight:
            weight[name] += math.exp(float(other["logprob"]))
    total = sum(weight.values())
    if not total > 0:
        weight, total = {name: float(name == said) for name in weight}, 1.0
    return (weight[style.first] + 0.5 * weight.get(style.tie or "", 0.0)) / total


def _at_verdict(said: str, tokens: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the alternatives of the last token that is the verdict on its own; none where it is
    part of a longer token."""
    for token in reversed(tokens):
        if str(token["token"]).strip() == said:
            return list(token.get("top_logprobs") or ())
    return []
