"""Say whether an answer is the gold answer, as far as that can be said without evaluating it.

Numbers, letters of a choice, words, equations and lists of these are decided here. `same` is None
for other mathematics, which `latex` then writes for math-verify. What would make a wrong answer
right is refused: a hedge ("5 or 6"), another unit, another bracket, an anagram that a computer
algebra reads as a product."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from ssppo_jax.oracles.written import (
    LONGEST,
    Quantity,
    agree,
    bare,
    characters,
    quantity,
    unit_of,
    untexed,
)

DEPTH = 8  # of lists in lists
ITEMS = 50  # compared in any order
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)|\u2248")
_TERMS = re.compile(r"[+*/]|[0-9]\s*[A-Za-z]|\^\s*\{?\s*[2-9]|[^\s^{]\s*-")  # no name of a quantity
_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+(?![0-9,.])")
_MARKS = re.compile(r"[\[\](){},;]|\s+(?:and|or)\s+|\s*\bor\b\s*")
_THOUSANDS = re.compile(r"(?<=[0-9]),[0-9]{3}(?![0-9])")
_MATRIX = re.compile(r"\\begin\{[pbB]?matrix\}(.*?)\\end\{[pbB]?matrix\}", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Z])\)?[.:)]?")
_CHOICE = re.compile(
    r"(?:the\s+)?(?:(?:correct|right|best)\s+)?(?P<named>(?:option|choice|answer|letter)s?\s*(?:is)?[\s:]*)?"
    r"\(?(?P<letter>[A-Za-z])(?P<close>\))?(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"\s*$|\s*[.:)]|\s*,\s*(?=[A-Za-z]{2})|\s+[-\u2013\u2014]\s|\s+(?:because|since|as|is)\b"
)
_OTHERS = re.compile(r"[\s.,:)]*(?:(?:or|and|nor|but)\b|[&/+]|\(?[A-Z]\)?(?=[\s.,:)]|$))")
_AGREEMENT = re.compile(
    r"(yes|no|true|false)\b\s*(?:[,.;:!(\u2014]|because|since|as|it|he|she|they)",
    re.IGNORECASE,
)
_REASON = re.compile(
    r"[\s,;]*\b(?:because|since|as it|so that|given that)\b|\s+\u2014\s|\s*;\s"
    r"|\s+\((?!\s*(?:or|and|not|nor)\b)"
)
_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_MATHEMATICAL = re.compile(
    "(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|log|exp|sqrt|abs|inf|infinity|max|min|gcd|lcm|det|mod|and"
)
_JUXTAPOSED = re.compile(r"[0-9]\s+[0-9]|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}|[0-9]+[/.][0-9]+[/.][0-9]+")
_CLOCK = re.compile(r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?")
_CODED = re.compile(
    r"0(?P<prefix>[xbo])(?P<code>[0-9a-f]+)"
    r"|\(?(?P<digits>[0-9a-z]+)\)?\s*_\s*\{?\s*(?P<base>[0-9]{1,2})\s*\}?"
)
_PREFIXES = {"x": 16, "b": 2, "o": 8}
_INFINITE = re.compile(r"([-+]?)\s*(?:\u221e|inf(?:inity)?|oo)", re.IGNORECASE)
_RATIO = re.compile(r"([0-9]{1,9})\s*(?::|to)\s*([0-9]{1,9})")
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH = rf"(?:{'|'.join(_MONTHS)})[a-z]*\.?"
_DATES = [
    re.compile(r"(?P<year>[0-9]{4})-(?P<month>[0-9]{1,2})-(?P<day>[0-9]{1,2})"),
    re.compile(
        rf"(?P<day>[0-9]{{1,2}})(?:st|nd|rd|th)?(?:\s+of)?\s+(?P<month>{_MONTH}),?\s+(?P<year>[0-9]{{4}})"
    ),
    re.compile(
        rf"(?P<month>{_MONTH})\s+(?P<day>[0-9]{{1,2}})(?:st|nd|rd|th)?,?\s+(?P<year>[0-9]{{4}})"
    ),
]
_UNIT = re.compile(r"(.*[0-9A-Za-z)}\]])\s+([A-Za-z\u00b0][A-Za-z\u00b0/^0-9{} .]*)")
_BROKEN = re.compile(r"[-+*/^_=<>,~:&]\s*$|^\s*[*/^_,)&]|[~?@#;]|!\s*!|[0-9]\s*_|\\mid(?![a-z])")
_LATEX = [
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<![\\A-Za-z])(?:sqrt|\u221a)\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\u221a\s*([0-9]+|[A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"\^\s*\(([^()]*)\)"), r"^{\1}"),
    (re.compile(r"\^\s*(-?[0-9]+)"), r"^{\1}"),
    (
        re.compile(
            r"(?<![\\A-Za-z])(sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|pi)(?![a-z])"
        ),
        r"\\\1 ",
    ),
    (re.compile(r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])", re.IGNORECASE), r"\\infty "),
    (re.compile(r"(?<=[0-9])(?:\s*\*\s*|\s+)(?=[A-Za-z])"), ""),
    (re.compile(r"(?<=[0-9A-Za-z)])\s*\*\s*(?=[0-9A-Za-z(\\])"), r" \\cdot "),
]
_SIGNS = {
    "\u00d7": r"\times ",
    "\u00f7": "/",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ",
    "\u03c0": r"\pi ",
    "\u221e": r"\infty ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u2260": r"\ne ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u00b1": r"\pm ",
    "\u2208": r"\in ",
    "\u2205": r"\emptyset ",
    "\u00b0": r"^\circ ",
    "\u03b8": r"\theta ",
}


def same(gold: str, said: str, depth: int = 0) -> bool | None:
    """Return true if the answer is the gold answer, false if not, None if mathematics must say."""
    if folded(gold) == folded(said):
        return bool(folded(gold))
    if max(len(gold), len(said)) > LONGEST or depth > DEPTH:
        return False
    gold, said = _plain(gold), _plain(said)
    for compared in (_letters, _codes, _equations, _numbers, _lists):
        verdict = compared(gold, said, depth)
        if verdict is not None:
            return verdict
    return _expressions(gold, said)


def folded(text: str) -> str:
    """Return the text as words are compared: without case, outer marks, an article, the full stop
    and repeated spaces."""
    text = bare(untexed(bare(text))) if len(text) <= LONGEST else text
    text = " ".join(text.casefold().split()).replace("a.m.", "am").replace("p.m.", "pm")
    text = re.sub(r"(?<=[^0-9)])!+$", "", text.rstrip(".,;:? ")).rstrip(".,;:? ").strip("\"'")
    article = re.match(r"(?:the|an?)\s+(?=[a-z]{2})", text)
    return text[article.end() :] if article else text


def _plain(text: str) -> str:
    """Return the text without outer marks, matrices as lists of rows, braces of sets as { }."""
    text = bare(text)
    text = re.sub(r"\\l(?:brace|angle)(?![A-Za-z])|\\\{", "{", text)
    text = re.sub(r"\\r(?:brace|angle)(?![A-Za-z])|\\\}", "}", text)
    return bare(untexed(_MATRIX.sub(_rows, text)))


def _rows(matrix: re.Match) -> str:
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", matrix[1]) if row.strip()]
    return "[" + ",".join("[" + row.replace("&", ",") + "]" for row in rows) + "]"


# ---- kinds of answers: each gives a verdict, or None where neither side is of its kind -----------


def _letters(gold: str, said: str, depth: int) -> bool | None:
    """Compare the letter of a choice: B is also (B), B) 12, option B and b."""
    letter = _LETTER.fullmatch(gold)
    if letter is None:
        return None
    found = _CHOICE.fullmatch(said.replace("**", "").strip("[]{} "))
    if found is None or found["letter"].upper() != letter[1]:
        return None if _EQUALS.search(said) else False
    rest = found["rest"]
    if found["letter"].islower() and rest.strip(" .)"):
        return False
    chosen = found["named"] or found["close"] or _CHOSEN.match(rest)
    return bool(chosen) and not _OTHERS.match(rest) and not re.match(r"\w", rest)


def _codes(gold: str, said: str, depth: int) -> bool | None:
    """Compare what looks like a number and is none: infinities, dates, times, digits in a base and
    ratios."""
    gold, said = gold.lower(), said.lower()
    for read in (_infinity, _date, _clock):
        if read(gold) is not None or read(said) is not None:
            return read(gold) == read(said)
    coded, number = _coded(gold), quantity(gold)
    if coded is not None and "_" in gold:
        return (
            _coded(said) == coded
            if _coded(said) is not None
            else gold.partition("_")[0].strip("() ") == said
        )
    for own in (_coded, _ratio):
        if own(gold) is not None or (own(said) is not None and number is not None):
            return _worth(gold, own) == _worth(said, own)
    return None


def _infinity(text: str) -> str | None:
    found = _INFINITE.fullmatch(text)
    return "-" + found[1] if found and found[1] == "-" else found and "+"


def _date(text: str) -> tuple[int, ...] | None:
    found = next((found for date in _DATES if (found := date.fullmatch(text))), None)
    if found is None:
        return None
    month = found["month"]
    number = int(month) if month.isdigit() else 1 + _MONTHS.index(month[:3])
    return int(found["year"]), number, int(found["day"])


def _clock(text: str) -> tuple[int, ...] | None:
    return tuple(map(int, text.split(":"))) if _CLOCK.fullmatch(text) else None


def _coded(text: str) -> Fraction | None:
    """Return what digits in a named base are worth: 0x1f, 101_2."""
    found = _CODED.fullmatch(text)
    if found is None:
        return None
    base = _PREFIXES.get(found["prefix"]) or int(found["base"])
    try:
        return Fraction(int(found["code"] or found["digits"], base))
    except ValueError:
        return None


def _ratio(text: str) -> Fraction | None:
    found = _RATIO.fullmatch(text)
    return Fraction(int(found[1]), int(found[2])) if found and int(found[2]) else None


def _worth(text: str, read: Callable[[str], Fraction | None]) -> Fraction | None:
    """Return what a text is worth, read in a way of its own or else as a quantity."""
    number = quantity(text)
    return read(text) if read(text) is not None or number is None else number.value


def _equations(gold: str, said: str, depth: int) -> bool | None:
    """Compare what is named where one side is an equation: 5 with x = 5, and not with 2x = 5."""
    if _items(gold) or _items(said) or (quantity(gold) and quantity(said)):
        return None
    if bool(_EQUALS.search(gold)) == bool(_EQUALS.search(said)):
        return None
    value, other = value_of(gold), value_of(said)
    if value is None or other is None:
        return None if value is None else False
    return same(value, other, depth + 1)


def value_of(equation: str) -> str | None:
    """Return what "x = 5", "5 = x" and "2 + 3 = 5" name, and what is no equation as it is; None for
    "2x = 10"."""
    *named, last = sides = [side.strip() for side in _EQUALS.split(equation)]
    if not named:
        return last or None
    if re.fullmatch(r"\\?[A-Za-z]+", last) and quantity(named[0]) is not None:
        return named[0]
    if any(_WORDS.search(side) for side in named) or not re.search("[A-Za-z]", "".join(sides)):
        return last
    return None if any(_TERMS.search(side) for side in named) else last


def _numbers(gold: str, said: str, depth: int) -> bool | None:
    """Compare two quantities; an answer of other words is no number."""
    number = quantity(gold)
    if number is None:
        return None
    answer = quantity(said)
    if answer is None and number.value.denominator > 1 and _COMMA.match(said):
        answer = quantity(said.replace(",", "."))  # 0,5
    if answer is not None:
        return agree(number, answer)
    return None if _items(said) else _expressions(gold, said)


def _lists(gold: str, said: str, depth: int) -> bool | None:
    """Compare sets, tuples, intervals and lists item by item; the brackets count, and the order
    does but for sets and for numbers without brackets."""
    golds, saids = _items(gold), _items(said)
    if golds is None and saids is None:
        return None
    if golds is None or saids is None:
        if golds is None and _wordy(gold):
            return None
        alone, other = (golds, said) if golds else (saids, gold)
        assert alone is not None
        if len(alone.items) != 1 or alone.marks == "()":
            return None if _unlike_list(other) else False
        pair = (alone.items[0], other) if golds else (other, alone.items[0])
        return same(*pair, depth + 1)
    marks = {golds.marks, saids.marks} - {""}
    short = marks == {"[]"} and golds.marks != saids.marks and len(golds.items) < 3
    if len(marks) > 1 or (marks & {"(]", "[)"} and golds.marks != saids.marks) or short:
        return False
    if marks == {"{}"} or (not marks and not any(_WORDS.search(item) for item in golds.items)):
        return _unordered(golds.items, saids.items, depth, once=marks == {"{}"})
    if len(golds.items) != len(saids.items):
        return False
    return _all(same(g, s, depth + 1) for g, s in zip(golds.items, saids.items, strict=True))


def _unordered(golds: list[str], saids: list[str], depth: int, *, once: bool) -> bool | None:
    """Compare items in any order."""
    if once:
        golds, saids = list(dict.fromkeys(golds)), list(dict.fromkeys(saids))
    if len(golds) != len(saids) or len(golds) > ITEMS:
        return False
    left, unsure = list(saids), False
    for gold in golds:
        verdicts = [same(gold, said, depth + 1) for said in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif None not in verdicts:
            return False
        else:
            unsure = True
    return None if unsure else True


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    verdicts = list(verdicts)
    return False if False in verdicts else None if None in verdicts else True


class _Items(NamedTuple):
    marks: str  # (), [], {}, (], [) or none
    items: list[str]


def _items(text: str) -> _Items | None:
    """Return the items of a list; None for what is none: one thing, or one thing in parentheses."""
    marks = ""
    if text[:1] in "([{" and text[-1:] in ")]}" and len(text) > 1 and _encloses(text):
        marks, text = text[0] + text[-1], text[1:-1]
    elif quantity(text) is not None:
        return None
    loose = ", " in text
    items, start, level = [], 0, 0
    for mark in _MARKS.finditer(text):
        if mark[0] in "([{":
            level += 1
        elif mark[0] in ")]}":
            level -= 1
        elif level == 0 and not (loose and _THOUSANDS.match(text, mark.start())):
            items.append(text[start : mark.start()].strip())
            start = mark.end()
    items = [item for item in [*items, text[start:].strip()] if item]
    if len(items) < 2 and marks in ("", "()"):
        return None
    return _Items(marks, items)


def _encloses(text: str) -> bool:
    """Return true if the first bracket is closed by the last."""
    level = 0
    for at, mark in enumerate(text):
        level += (mark in "([{") - (mark in ")]}")
        if level == 0:
            return at == len(text) - 1
    return False


def _unlike_list(text: str) -> bool:
    """Return true for mathematics that may stand for a list: a union, an inequality, plus-minus."""
    return bool(
        re.search(
            r"\\(?:pm|cup|cap|in|le|ge|lt|gt|setminus|empty|var)|[<>\u2264\u2265\u00b1\u222a\u2229\u2208]",
            text,
        )
    )


def _expressions(gold: str, said: str) -> bool | None:
    """Leave mathematics to math-verify; words are equal or not."""
    if _wordy(gold):
        reason = _REASON.search(said)
        agreed = _AGREEMENT.match(said)
        return bool(reason and folded(said[: reason.start()]) == folded(gold)) or bool(
            agreed and agreed[1].lower() == folded(gold)
        )
    (gold, unit), (said, other) = _and_unit(gold), _and_unit(said)
    if unit and other and unit != other:
        return False
    strange = any(not c.isascii() and c not in _SIGNS and c != "\u221a" for c in gold + said)
    if (
        strange
        or _malformed(gold)
        or _malformed(said)
        or _wordy(said)
        or _JUXTAPOSED.search(gold)
        or _JUXTAPOSED.search(said)
    ):
        return False
    return None


def _malformed(text: str) -> bool:
    """Return true for what a lenient parser would read in part: 5), 5 +, 5_5, {x | x > 5}."""
    text = re.sub(r"\\(?:left|right)\s*\.", "", text)
    if text.count("|") % 2 or _BROKEN.search(text):
        return True
    pairs = (("([", ")]"), ("{", "}"))
    return any(sum(map(text.count, a)) != sum(map(text.count, b)) for a, b in pairs)


def _wordy(text: str) -> bool:
    words = [word.lower() for word in _WORDS.findall(text)]
    return not all(_MATHEMATICAL.fullmatch(word) for word in words) or bool(
        re.fullmatch("(?!pi$)[A-Za-z]{2}", text)
    )


def _and_unit(text: str) -> tuple[str, str]:
    """Return an expression and the unit that follows it."""
    found = _UNIT.fullmatch(text)
    unit = found and unit_of(" " + found[2])
    return (found[1], unit) if found and unit and quantity("1 " + found[2]) else (text, "")


def _literal(number: Quantity) -> str:
    value = number.value / 100 if number.unit == "%" else number.value
    if number.places is not None:
        return f"{Decimal(value.numerator) / Decimal(value.denominator):f}"
    whole = value.denominator == 1
    return f"{value.numerator}" if whole else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def latex(text: str) -> str:
    """Return an answer as LaTeX for math-verify: 2*x**2 is 2 \\cdot x^{2}, sqrt(2) is \\sqrt{2}."""
    number = quantity(text)
    if number is not None:
        return _literal(number)
    text = characters(bare(text))
    for pattern, instead in _LATEX:
        text = pattern.sub(instead, text)
    text = "".join(_SIGNS.get(c, c) for c in text).strip()
    if text.startswith("{") and text.endswith("}") and _encloses(text):
        text = "\\{" + text[1:-1] + "\\}"
    return _and_unit(text)[0].rstrip(".").strip()
