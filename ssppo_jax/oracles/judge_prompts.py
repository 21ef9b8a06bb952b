"""The words in which a language model is asked to judge two responses, and how its verdict is read.

Pure functions. Two styles, after the benchmarks' designs in our own words:

    alpaca_eval   one token, m or M, names the better one; its probabilities are the verdict
    mt_bench      compares, then ends in [[A]], [[B]] or, for a tie, [[C]]
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple

from ssppo_jax.oracles import answers
from ssppo_jax.types import Prompt

Messages = list[dict[str, str]]

SPACE = re.compile(rb"\s*")


class NoVerdict(Exception):
    """No verdict came of a request: why, in our words, and `words` that are not ours."""

    def __init__(self, why: str, words: str = ""):
        super().__init__(why)
        self.words = words


def completion(content: bytes) -> tuple[Any, Any, Any]:
    """Return what an OpenAI chat completion holds: text, tokens with log-probs, why it ended.

    Raises:
        NoVerdict: it is none.
    """
    try:
        choice = json.loads(content)["choices"][0]
        logprobs = choice.get("logprobs") or {}
        return choice["message"]["content"], logprobs.get("content"), choice.get("finish_reason")
    except (ValueError, RecursionError):
        raise NoVerdict("the judge's reply is not JSON") from None
    except (LookupError, TypeError, AttributeError):
        raise NoVerdict("the judge's reply is not a chat completion") from None


class Style(NamedTuple):
    """One way of asking. `first`, `second` and `tie` are the words a verdict may be."""

    system: str
    question: str  # with {conversation}, {first} and {second}
    first: str
    second: str
    tie: str | None
    verdict: re.Pattern  # its last match's group 1 is the verdict
    ends: tuple[str, ...] = ("",)  # what may follow a token that holds the verdict's letter


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
        ends=("", "]", "]]"),
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


def probability(style: Style, text: str, tokens: Any) -> float | None:
    """Return P(the first is better), from the verdict token's probabilities or else from the words;
    None without a verdict.

    Only what follows the thinking is read. The tokens are laid along the text, which shows the one
    that holds the verdict's letter. Every alternative to it counts for the verdict that the reply
    would have with it, if any; a tie counts half for each. The words count where the tokens do not
    match the text.

    Args:
        style: how the judge was asked.
        text: its reply.
        tokens: `logprobs.content` of an OpenAI reply, if there is one.

    Raises:
        NoVerdict: the tokens are malformed, or a log-prob is not a number of at most 0.
    """
    spoken = answers.said(text)
    found = list(style.verdict.finditer(spoken))
    if not found:
        return None
    said, at = found[-1][1], found[-1].start(1)
    weight = {name: 0.0 for name in (style.first, style.second, style.tie) if name}
    for name, chance in _chances(style, spoken[:at], text, text.rindex(spoken) + at, tokens):
        weight[name] += chance
    total = sum(weight.values())
    if not total > 0:
        weight, total = {name: float(name == said) for name in weight}, 1.0
    return (weight[style.first] + 0.5 * weight.get(style.tie or "", 0.0)) / total


def _chances(
    style: Style, before: str, text: str, at: int, tokens: Any
) -> Iterator[tuple[str, float]]:
    """Yield verdict and probability of each token that could hold the letter at `text[at]`.

    `before` is what the judge had said, after its thinking, in front of the letter.
    """
    entries = _entries(tokens)
    place = _place(text, at, [_bytes(entry) for entry in entries])
    if place is None:
        return
    index, inside = place
    ahead = _encoded(before)
    context = ahead[: max(0, len(ahead) - inside)].decode(errors="replace")[-2:]
    others = {_bytes(other): other for other in _entries(entries[index].get("top_logprobs"))}
    others.setdefault(_bytes(entries[index]), entries[index])  # it need not be among the likeliest
    for piece, other in others.items():
        chance = _chance(other.get("logprob"))
        name = _verdict_with(style, context, piece.decode(errors="replace"))
        if name:
            yield name, chance


def _verdict_with(style: Style, context: str, piece: str) -> str | None:
    """Return the verdict of a reply in which a token stands behind its context."""
    for end in style.ends:
        found = list(style.verdict.finditer(context + piece + end))
        if found and found[-1].start(1) >= len(context):
            return found[-1][1]
    return None


def _place(text: str, at: int, pieces: list[bytes]) -> tuple[int, int] | None:
    """Return the token that holds `text[at]`, and how many bytes of it stand before that.

    Tokens of the thinking may stand before the text, and end marks after it. A server may have left
    out white space at the text's ends. None where text and tokens differ.
    """
    content = _encoded(text.strip())
    letter = len(_encoded(text[:at].lstrip()))
    joined, starts = b"".join(pieces), list(accumulate(map(len, pieces), initial=0))
    begins = (SPACE.match(joined, start) for start in reversed(starts[:-1]))
    begin = next((b.end() for b in begins if b and joined.startswith(content, b.end())), None)
    if begin is None and joined and content.count(joined) == 1:  # tokens of a part of the text
        begin = -content.index(joined)
    if begin is None or not 0 <= begin + letter < len(joined):
        return None
    index = bisect_right(starts, begin + letter) - 1
    return index, begin + letter - starts[index]


def _entries(tokens: Any) -> list[dict[str, Any]]:
    """Return a list of tokens, empty for none; check that it is one."""
    tokens = [] if tokens is None else tokens
    if not isinstance(tokens, list) or not all(isinstance(entry, dict) for entry in tokens):
        raise NoVerdict("the tokens of the judge's reply are malformed")
    return tokens


def _bytes(entry: dict[str, Any]) -> bytes:
    """Return a token's bytes: as the server lists them, else of its text.

    Some servers show the vocabulary's own signs for a space and a line break.
    """
    listed, token = entry.get("bytes"), entry.get("token")
    if isinstance(listed, list) and listed and all(type(x) is int and 0 <= x < 256 for x in listed):
        return bytes(listed)
    if not isinstance(token, str):
        raise NoVerdict("the tokens of the judge's reply are malformed")
    return _encoded(token.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n"))


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _chance(logprob: Any) -> float:
    """Return the probability of a log-prob, of which rounding may leave a little more than 0."""
    if type(logprob) not in (int, float) or not logprob <= 0.01:  # NaN is not
        raise NoVerdict("a log-prob of the judge's reply is not a number of at most 0")
    return math.exp(max(logprob, -9999))  # which stands for minus infinity in some replies
