"""Find the final answer in a response. Pure functions of text; None where there is none.

A finder of `FINDERS` finds one answer by its style. `readings` finds what an answer to a known gold
answer may be: the same statement as it stands and without its marks, and a number in it.

    boxed         the last \\boxed{...}, braces nested
    tag           the last complete <answer>...</answer>
    hash          what follows the last ####, to the end of its line (GSM8K)
    final_number  the last number in the text
    last_line     the last line that is not empty, without one full stop at the end
    whole         the whole text, without outer spaces and one full stop at the end
    auto          the first that finds something: boxed, tag, a number after ####, "the answer is
      ...", the last line with a number; the last line or lines, if the gold answer is no number

Only what is said counts, not what is thought: the text after the last </think>, and nothing where
<think> stays open. <thinking>, <thought>, <reasoning> and [THINK] are the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from ssppo_jax.oracles.equal import value_of
from ssppo_jax.oracles.written import LONGEST, Quantity, bare, characters, quantity, untexed
from ssppo_jax.types import Prompt

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
    r"\banswers?[*_]{0,3}\s{0,9}(?:(?:to|for|of)\s[^.:\n]{0,80}?\s)?"
    r"(?:(?:is|are|(?:would|should|must)\s+be)(?![A-Za-z])|:|=|(?<=[*_]))"
    r"|^[ \t]*+(?:[#*_]{1,6}[ \t]*+)?(?:final[ \t]+)?answer[*_:]{0,3}[ \t]*+$",
    re.IGNORECASE | re.MULTILINE,
)
LEAD = re.compile(r"(?:[ \t]*(?:\*{1,3}|__)(?=\s))?[\s:=]*")  # of what is said; **Answer:** 5
SENTENCE = re.compile(r"[.!?\u3002](?:\s|$)")
DISPLAY = re.compile(r"\$\$\s*(?P<a>[^$]+?)\s*\$\$|\\\[\s*(?P<b>.+?)\s*\\\]", re.DOTALL)
MARKS = ("", "\\]")  # of a line that holds nothing else
ALIGNED = re.compile(  # the lines of a derivation, which a matrix does not have
    r"\\\\(?:\[[^\]\n]{0,9}\])?\s*&\s*(?==)|\\(?:begin|end)\{(?:align|gather|equation)(?:ed|\*)?\}"
)
BULLET = re.compile(r"^\s*[\u2022\u00b7*]\s+")
OPEN_BOX = re.compile(r"\\boxed\s*\{(?=[^{}\n]*\Z)")  # a response cut off
IS = re.compile(r"\b(?:is|are|was|were)\s+|:\s+")
DIGIT = re.compile("[0-9]")
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")  # of a language: \frac and x are none
THINKS = re.compile(r"<(?P<end>/?)(?:think|thinking|thought|reasoning)>|\[(?P<close>/?)THINK\]")
# What may stand between the words of a sentence as one number or expression.
EXPRESSION = re.compile(
    r"(?:\\[A-Za-z]+|(?<![A-Za-z'])(?!a\s+[0-9$]|I\s)[A-Za-z](?![A-Za-z])|[0-9]+(?:st|nd|rd|th)\b|[0-9]+|[eE](?=[-+]?[0-9])"
    r"|,(?=[0-9]{2,})|\.(?=[0-9])|!(?=[\s.]*$)|[-+*/^\u00d7\u00f7\u00b7=:%(){}\[\]_$\u20ac\u00a3\u221a\u03c0\u221e\\]"
    r"|[ \t](?![ \t]))+"
)
BEFORE_NO_ANSWER = re.compile(  # 6 is not said in "not 6", "5 or 6", "between 5 and 6", "x > 6"
    r"(?:\b(?:not|never|(?:more|less|fewer|greater|larger|smaller|higher|lower|other) than|at least"
    r"|at most|over|under|above|below|between|up to|exceeds?|almost|nearly"
    r"|rather than|instead of|log|ln|sin|cos|tan|exp|twice|double|triple|minus|negative"
    r"|(?:root|square|cube|half|third|quarter|percent|power|multiple|factorial|out) of)"
    r"|n't|[<>\u2264\u2265\u2260]|\\(?:ge|le|ne|gt|lt)q?"
    r"|[0-9][^\S\n]*[^\s0-9]{0,12}[^\S\n]*(?:,?\bor|\bto|\band|\u2013|\u2014)"
    r"|\bbetween\b[^\n]{0,40}\band)[\s$*(]*$",
    re.IGNORECASE,
)
AFTER_NO_ANSWER = re.compile(  # nor in "6 or more", "6 squared", "6% of it"
    r"\s*(?:or|to|factorial|squared|cubed|times|plus|minus|divided|and\s+an?|percent\s+of"
    r"|hundred|thousand|million|billion|trillion|dozen)\b|\s*[\u2013\u2014]\s*[0-9]|(?<=%)\s*of\b"
    r"|(?<=% )\s*of\b",
    re.IGNORECASE,
)


def said(text: str) -> str:
    """Return what comes after the thinking; empty when that never ended."""
    last, opened = 0, False
    for mark in THINKS.finditer(text):
        closes = bool(mark["end"] or mark["close"])
        last, opened = (mark.end(), False) if closes else (last, True)
    return "" if opened else text[last:]


def heard(prompt: Prompt, response: str) -> str:
    """Return a response with the thinking that the prompt's chat template opened for it."""
    return "<think>" + response if prompt.meta.get("opens_thinking") is True else response


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
    found = map(whole, reversed(_lines(text)))
    return next((line for line in found if line is not None), None)


def _lines(text: str) -> list[str]:
    """Return the lines of a text; U+2028 and its like are characters of a line."""
    return text.replace("\r\n", "\n").split("\n")


def whole(text: str) -> str | None:
    """Return the text itself, without outer spaces and one full stop at the end."""
    return text.strip().removesuffix(".").strip() or None


def _statement(text: str) -> str | None:
    """Return all that follows the last "answer is" or "answer:"."""
    found = max(SAID.finditer(text), key=re.Match.end, default=None)
    if found is None:
        return None
    lead = LEAD.match(text, found.end())
    return text[lead.end() if lead else found.end() :].rstrip() or None


FINDERS: dict[str, Callable[[str], str | None]] = {
    "boxed": boxed,
    "tag": tag,
    "hash": hashed,
    "final_number": final_number,
    "last_line": last_line,
    "whole": whole,
}
STYLES = ("auto", *FINDERS)


def readings(response: str, style: str, gold: str | None) -> list[str]:
    """Return what a response may be saying where the gold answer is known, the most literal first.

    All are readings of one statement: as it stands, to the end of its line, to the end of its
    sentence, without the marks around it. Where the gold answer is a number, also the number that
    the statement comes down to. None of them is a part of a number or of an expression, and a
    hedge such as "5 or 6" says no number.

    Args:
        response: what the model wrote.
        style: one of `STYLES`.
        gold: the gold answer, of which only the kind is used: a number, or the count of its lines;
            None if any answer that works is right.
    """
    text = said(response)
    number = quantity(gold) if gold is not None else None
    lines = None if gold is None else len(_lines(gold.strip()))
    if style == "auto":
        found = _automatic(text, number is not None, lines)
    else:
        answer = FINDERS[style](text)
        found = [] if answer is None else [answer]
        if style == "whole" and found:
            found = [found[0], text.strip()]
    read = [form for statement in found for form in (statement, bare(statement))]
    if number is not None:
        read += [n for n in map(_number_in, found) if n is not None]
        read += [n for n in (_figures(form, number) for form in read) if n is not None]
    return [form for form in dict.fromkeys(read) if form.strip()]


def _automatic(text: str, number: bool, lines: int | None) -> list[str]:
    """Return the forms of the statement that `auto` finds, the most literal first."""
    box, tagged = boxed(text), tag(text)
    if box is not None:
        whole_box = text[text.rindex("\\boxed") :].partition("{")[2].rpartition("}")[0]
        return [box] if number else [box, whole_box]  # where braces in quotes do not match
    if tagged is not None:
        return [tagged]
    after = hashed(text)
    if after is not None and (NUMBER.match(bare(after)) or text.rstrip().endswith(after)):
        return [after]
    statement = _statement(text)
    if statement is not None:
        line = _displayed(statement)
        sentence = SENTENCE.split(line)[0]
        forms = [sentence] if number else [statement, line, sentence]
        forms = [form.strip(" ,;:") for form in forms]
        stops = [form.removesuffix(".") for form in forms]
        return [form.rstrip() for form in [*forms, *stops, *(_unbolded(form) for form in stops)]]
    if number:
        last = _last_with_number(text)
        return [] if last is None else [last]
    spoken = _lines(text)
    while spoken and spoken[-1].strip(" `$*\t") in MARKS:
        spoken.pop()
    ending = "\n".join(spoken[-(lines or 1) :])
    named = IS.split(ending)[-1]
    forms = [ending, ending.strip().removesuffix("."), named.removesuffix(".")]
    return forms if lines is not None else [*forms, text.strip()]


def _displayed(statement: str) -> str:
    """Return the first line of a statement, or the formula that it displays on lines of its own."""
    opened = DISPLAY.match(statement)
    return (opened["a"] or opened["b"]).strip() if opened else statement.partition("\n")[0]


def _unbolded(form: str) -> str:
    """Return a statement without the end of bold type that began before it, or only the bold words
    that it begins with."""
    if form.startswith("**"):
        return form[2:].rpartition("**")[0] or form
    return form.removesuffix("**")


def _last_with_number(text: str) -> str | None:
    """Return the last line, if it is a number in words, or the last in which digits stand."""
    text = ALIGNED.sub("\n", OPEN_BOX.sub("", characters(text)))
    lines = [line for line in _lines(text) if line.strip()]
    if lines and quantity(lines[-1]) is not None:
        return lines[-1].strip()
    last = next((line for line in reversed(lines) if DIGIT.search(line)), None)
    return last and BULLET.sub("", last).strip()


def _number_in(statement: str) -> str | None:
    """Return the quantity or expression that a sentence comes down to: the first if the sentence
    begins with it, else the last; None if it hedges."""
    drawn = "".join(
        c for c in statement if unicodedata.category(c) in ("So", "Cs") and c != "\u00b0"
    )
    statement = untexed(bare(statement.strip(drawn + " ")))[-LONGEST:]
    if quantity(statement) is not None:
        return statement
    if not WORD.search(statement):
        return value_of(statement)
    parts = (part for part in EXPRESSION.finditer(statement) if DIGIT.search(part[0]))
    part = max(parts, key=re.Match.end, default=None)
    if part is None:
        return None
    before, rest = statement[: part.start()].rstrip(), statement[part.start() :].strip(" =*")
    if BEFORE_NO_ANSWER.search(before):
        return None
    if quantity(rest) is not None:
        return rest
    return None if AFTER_NO_ANSWER.match(statement, part.end()) else _tidied(part[0])


def _tidied(expression: str) -> str | None:
    """Return an expression without the punctuation and the brackets that belong to its sentence."""
    expression = expression.strip(" .,:;!*_$=")
    for opening, closing in ("()", "[]", "{}"):
        if expression.count(opening) > expression.count(closing):
            expression = expression.rpartition(opening)[2]
        elif expression.count(closing) > expression.count(opening):
            expression = expression.partition(closing)[0]
    return value_of(bare(expression))


def _figures(statement: str, gold: Quantity) -> str | None:
    """Return the number of a quantity in digits alone, if the gold answer names no unit either."""
    found = quantity(statement)
    if found is None or gold.unit or (found.unit == "%" and abs(gold.value) <= 1):
        return None
    first = NUMBER.search(untexed(statement))
    plain = _plain(first[0]) if first else ""
    same = quantity(plain)
    if same is not None and same.value == found.value:
        return plain
    return str(found.value.numerator) if found.value.denominator == 1 else None


def well_formed(response: str, style: str) -> bool:
    """Return true if a response keeps to its format: its marker exactly once or, in a style without
    marker, the answer and nothing else."""
    text = said(response)
    if style in ("auto", "final_number"):
        return _plain(whole(text) or "") == final_number(text)
    kept = {
        "boxed": len(re.findall(r"\\boxed\s*\{", text)) == 1,
        "tag": text.count("<answer>") == text.count("</answer>") == 1,
        "hash": text.count("####") == 1,
        "last_line": len(_lines(text.strip())) == 1,
        "whole": True,
    }
    return kept[style] and FINDERS[style](text) is not None
