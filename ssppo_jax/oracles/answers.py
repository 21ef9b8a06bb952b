"""Finding the final answer in a response. Pure functions of text; None where there is none.

boxed         the last \\boxed{...}, braces nested
tag           the last complete <answer>...</answer>
hash          what follows the last ####, to the end of its line (GSM8K)
final_number  the last number in the text
whole         the whole text, without outer spaces and one full stop at the end
auto          the first of boxed, tag, hash and final_number that finds something
"""

from __future__ import annotations

import re
from collections.abc import Callable

# A sign counts only where no digit or closing bracket stands before it: "7-5" holds 7 and 5, "= -5" holds -5.
NUMBER = re.compile(
    r"(?<![\w.,)])[-+\u2212]?[$\u20ac\u00a3]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?(?!\w)|\d+(?:\.\d+)?"
)
HASH = re.compile(r"####[ \t]*([^\n]+)")
TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)


def boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} whose braces close."""
    for start in reversed([m.end() for m in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                return text[start:end].strip() or None
    return None


def tag(text: str) -> str | None:
    """The content of the last complete <answer>...</answer>."""
    found = TAG.findall(text)
    return (found[-1].strip() or None) if found else None


def hashed(text: str) -> str | None:
    """What follows the last ####, to the end of its line."""
    found = HASH.findall(text)
    return (found[-1].strip() or None) if found else None


def final_number(text: str) -> str | None:
    """The last number: without its thousands commas, currency sign and the full stop that ends a sentence."""
    found = NUMBER.findall(text)
    if not found:
        return None
    return re.sub(r"[,$\u20ac\u00a3+]", "", found[-1].replace("\u2212", "-"))


def whole(text: str) -> str | None:
    """The text itself, without outer spaces and one full stop at the end."""
    return text.strip().removesuffix(".").strip() or None


def auto(text: str) -> str | None:
    """The first of boxed, tag, hash and final_number that finds something."""
    return next((found for style in (boxed, tag, hashed, final_number) if (found := style(text)) is not None), None)


STYLES: dict[str, Callable[[str], str | None]] = {
    "auto": auto,
    "boxed": boxed,
    "tag": tag,
    "hash": hashed,
    "final_number": final_number,
    "whole": whole,
}


def well_formed(text: str, style: str) -> bool:
    """Whether a response keeps to its format: the marker exactly once; without marker, the answer and nothing else."""
    if style == "boxed":
        return len(re.findall(r"\\boxed\s*\{", text)) == 1 and boxed(text) is not None
    if style == "tag":
        return text.count("<answer>") == text.count("</answer>") == 1 and tag(text) is not None
    if style == "hash":
        return text.count("####") == 1 and hashed(text) is not None
    if style == "whole":
        return whole(text) is not None
    answer = final_number(text)
    return answer is not None and re.sub(r"[,$\u20ac\u00a3+]", "", whole(text) or "") == answer
