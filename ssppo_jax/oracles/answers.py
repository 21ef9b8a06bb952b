"""Find the final answer in a response. Pure functions of text; None where there is none.

    boxed         the last \\boxed{...}, braces nested
    tag           the last complete <answer>...</answer>
    hash          what follows the last ####, to the end of its line (GSM8K)
    final_number  the last number in the text
    last_line     the last line that is not empty, without one full stop at the end
    whole         the whole text, without outer spaces and one full stop at the end
    auto          the first that finds something: boxed, tag, a number after ####, "the answer is
      ...", final_number

Only what is said counts, not what is thought: the text after the last </think>, and nothing where
<think> stays open."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

# A sign counts only where no word or closing bracket stands before it: "7-5" holds 7 and 5,
# "(3,-5)" holds 3 and -5.
NUMBER = re.compile(
    r"(?:(?<![\w)\]}])[-+\u2212])?[$\u20ac\u00a3]?(?:(?<=[$\u20ac\u00a3])[-+\u2212])?"
    r"(?:(?<![0-9])(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)"
    r"(?:[eE][-+]?[0-9]+(?!\w)|/[0-9]+)?"
)
BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)  # \{ and \} are text
HASH = re.compile(r"####[ \t]*([^\n]+)")
TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
SAID = re.compile(
    r"\banswer\s*(?:is|are|:|=|(?:would|should|must) be)[\s:*=]*(?=([^\n]+))", re.IGNORECASE
)
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")  # of a language: \frac and x are none


def said(text: str) -> str:
    """Return what comes after the thinking; empty when that never ended."""
    spoken = text.rpartition("</think>")[2]
    return "" if "<think>" in spoken else spoken


def boxed(text: str) -> str | None:
    """Return the content of the last \\boxed{...} whose braces close."""
    opened: list[int] = []  # where each open brace's content starts; -1 for braces of other things
    found = (-1, "")
    for token in BRACES.finditer(text):
        if token[0].endswith("{") and token[0] != r"\{":
            opened.append(token.end() if len(token[0]) > 1 else -1)
        elif token[0] == "}" and opened:
            start = opened.pop()
            if start > found[0]:
                found = (start, text[start : token.start()])
    return found[1].strip() or None


def tag(text: str) -> str | None:
    """Return the content of the last complete <answer>...</answer>."""
    found = TAG.findall(text)
    return (found[-1].strip() or None) if found else None


def hashed(text: str) -> str | None:
    """Return what follows the last ####, to the end of its line."""
    found = HASH.findall(text)
    return (found[-1].strip() or None) if found else None


def final_number(text: str) -> str | None:
    """Return the last number, without thousands commas, currency sign and the full stop that ends a
    sentence."""
    found = NUMBER.findall(text.replace("{,}", ","))
    return _plain(found[-1]) if found else None


def _plain(number: str) -> str:
    return re.sub(r"[,$\u20ac\u00a3+]", "", number.replace("\u2212", "-"))


def last_line(text: str) -> str | None:
    """Return the last line that is not empty, without one full stop at its end."""
    return _first(whole(line) for line in reversed(text.splitlines()))


def whole(text: str) -> str | None:
    """Return the text itself, without outer spaces and one full stop at the end."""
    return text.strip().removesuffix(".").strip() or None


def auto(text: str) -> str | None:
    """Return what the first style finds: boxed, tag, a number after ####, "the answer is ...",
    final_number."""
    return _first(style(text) for style in (boxed, tag, _hashed_number, _stated, final_number))


def _first(found: Iterable[str | None]) -> str | None:
    return next((answer for answer in found if answer is not None), None)


def _hashed_number(text: str) -> str | None:
    """Return the number after ####, as GSM8K writes it; "#### Step 2" is a heading."""
    found = hashed(text)
    number = found and NUMBER.match(found)
    return _plain(number[0]) if number else None


def _stated(text: str) -> str | None:
    """Return what the last "answer is" or "answer:" says: a number, an expression, a few words."""
    found = SAID.findall(text)
    if not found:
        return None
    sentence = re.split(r"[.!?](?:\s|$)", found[-1])[0].rpartition("=")[2]
    sentence = re.sub(r"[*`\"$]+", "", sentence).strip(" ,;:")
    first = NUMBER.match(sentence)
    if first and re.match(r"%?[\s,;]*(?:$|[(]?[A-Za-z]{2,})", sentence[first.end() :]):
        return _plain(first[0])  # "42 apples", "42, because 40 + 2 is"
    if WORD.search(sentence):
        return final_number(sentence) or (sentence if len(sentence.split()) <= 3 else None)
    return sentence or None  # "x^2 + 3x", "(3, -5)"


STYLES: dict[str, Callable[[str], str | None]] = {
    "auto": auto,
    "boxed": boxed,
    "tag": tag,
    "hash": hashed,
    "final_number": final_number,
    "last_line": last_line,
    "whole": whole,
}


def answer_of(response: str, style: str) -> str | None:
    """Return the final answer of a response in one of `STYLES`."""
    return STYLES[style](said(response))


def well_formed(response: str, style: str) -> bool:
    """Return true if a response keeps to its format: its marker exactly once or, in a style without
    marker, the answer and nothing else."""
    text = said(response)
    answer = STYLES[style](text)
    match style:
        case _ if answer is None:
            return False
        case "boxed":
            return len(re.findall(r"\\boxed\s*\{", text)) == 1
        case "tag":
            return text.count("<answer>") == text.count("</answer>") == 1
        case "hash":
            return text.count("####") == 1
        case "last_line":
            return len(text.strip().splitlines()) == 1
        case "whole":
            return True
    return _plain(whole(text) or "") == final_number(text)
