"""Read what people and models write for a number: 1,234.50, $18, 50%, 11 5/6, 1.5 x 10^3, ３.

Nothing is evaluated, so time is bounded: a `Quantity` is read from one literal, exactly. Text that
is no single number is None."""

from __future__ import annotations

import math
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

LONGEST = 5000  # characters of what is read as mathematics; longer answers are compared as text
DIGITS = 1000  # of a number, its exponent and its factorial
SIGNIFICANT = 6  # digits from which a decimal stands for the fraction that it rounds

_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]+")
_LOWERED = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b", "0123456789+-"
)
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\ufe63\uff0d", "-"),
        **dict.fromkeys("\u2018\u2019\u02bc", "'"),
        **dict.fromkeys("\u201c\u201d", '"'),
        **dict.fromkeys("\u3002\uff0e\uff61", "."),
        "\u2044": "/",
        "\u00ba": "\u00b0",
    }
)
_WRAPS = re.compile(
    r"\*\*\*(?P<a>.+)\*\*\*|\*\*(?P<b>.+)\*\*|\*(?P<c>[^*]+)\*|__(?P<d>.+)__|_(?P<n>[^_]+)_|"
    r"```[^\n`]*\n(?P<e>.+?)\n?```|`(?P<f>[^`]+)`|\$\$(?P<g>[^$]+)\$\$|\$(?P<h>(?:\\\$|[^$])+)\$|"
    r"\\\((?P<i>.+)\\\)|\\\[(?P<j>.+)\\\]|\"(?P<k>[^\"]+)\"|\u201c(?P<l>[^\u201d]+)\u201d|"
    r"\\(?:text(?:bf|it|rm|tt|sf)?|math(?:rm|bf|it)|mbox|fbox|boxed)\s*\{(?P<m>[^{}]*)\}",
    re.DOTALL,
)
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf)?|math(?:rm|bf|it|sf)|mbox|operatorname)\s*\{([^{}]*)\}"
)
_REPLACED = [
    (re.compile(r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![A-Za-z])"), ""),
    (re.compile(r"\\!|\\limits"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,;:> ]|\\q?quad(?![A-Za-z])"), " "),
    (re.compile(r"\\([$%#_])"), r"\1"),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|\u00b0)"), "\u00b0"),
    (re.compile(r"\\times(?![A-Za-z])"), "\u00d7"),
    (re.compile(r"\\infty(?![A-Za-z])"), "\u221e"),
    (re.compile(r"\\(?:approx|simeq)(?![A-Za-z])"), "\u2248"),
]
_FRAC = re.compile(
    r"\\frac\s*(?:\{\s*([-+]?[0-9.,]+)\s*\}|([0-9]))\s*(?:\{\s*([0-9.,]+)\s*\}|([0-9]))"
)

_UNSIGNED = (
    r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}|"
    r"[1-9][0-9]{0,2}(?: [0-9]{3})+|[1-9][0-9]{0,2}(?:'[0-9]{3})+|[0-9]+)(?![0-9])"
)
_CONTINENTAL = (
    r"[1-9][0-9]{0,2}(?:(?:\.[0-9]{3})+,[0-9]+|(?:\.[0-9]{3}){2,}|(?: [0-9]{3})+,[0-9]+)(?![0-9,.])"
)
_DECIMAL = rf"(?:{_UNSIGNED}(?:\.[0-9]+)?|\.[0-9]+)(?![0-9])"
_POWER = r"(?:\u00d7|\\cdot|\u00b7|\*|x)\s*10\s*(?:\^|\*\*)\s*\{?\s*(?P<power>[-+]?[0-9]+)\s*\}?"
_LITERAL = re.compile(
    rf"(?P<continental>{_CONTINENTAL})|"
    rf"(?P<whole>[0-9][0-9,]*)(?:\s+|\s+and\s+)(?P<over>[0-9]+)\s*/\s*(?P<under>[0-9]+)(?![0-9.,/])|"
    rf"(?P<n>{_DECIMAL})\s*/\s*(?P<d>{_DECIMAL})(?!\s*/)|"
    rf"(?P<mantissa>{_DECIMAL})(?:[eE](?P<e>[-+]?[0-9]+)(?!\w)|\s*{_POWER})|"
    rf"(?P<decimal>{_DECIMAL})"
)
_BEFORE = re.compile(
    r"(?:(?:\u2248|~|=|#(?=\s*[0-9])|\u2192|\u21d2|\u2234|\\(?:to|implies|Rightarrow)\b"
    r"|exactly|about|approximately|approx\.?|roughly|around|only|just|a total of"
    r"|option\s+[A-Z]\s*:|\(?[A-Z]\)|[A-Z][.:](?=\s))\s*)*",
    re.IGNORECASE,
)
_SIGN = re.compile(
    r"(?P<sign>[-+]|\u2013(?=[0-9])|(?:minus|negative)\s)?\s*"
    r"(?P<money>US\$|[$\u20ac\u00a3\u00a5\u20b9]|(?:USD|EUR|GBP|Rs\.?)\s)?\s*(?P<inner>[-+])?",
    re.IGNORECASE | re.ASCII,
)
_ONES = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen"
    "|fifteen|sixteen|seventeen|eighteen|nineteen"
)
_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_WORTH = {word: n for n, word in enumerate(_ONES.split("|"))}
_WORTH |= {word: 10 * n for n, word in enumerate(_TENS.split("|"), 2)}
_WORD = re.compile(
    rf"(?P<tens>{_TENS})?(?:(?<=[a-z])[- ](?=[a-z]))?(?P<ones>(?:{_ONES})(?![a-z]))?(?![a-z-])",
    re.IGNORECASE | re.ASCII,
)
_SCALES = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "mn": 10**6,
    "billion": 10**9,
    "bn": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
_SCALE = re.compile(rf"(?:\s*({'|'.join(_SCALES)})|k)(?![A-Za-z])", re.IGNORECASE | re.ASCII)
_UNITS = {  # how it is written: what it is
    unit: names.split()[0]
    for names in (
        *("mm millimeter millimetre", "cm centimeter centimetre", "m meter metre"),
        *("km kilometer kilometre", "in inch inches", "ft foot feet", "yd yard", "mi mile"),
        *("mg milligram", "g gram", "kg kilogram", "lb lbs pound", "oz ounce"),
        *("ml mL milliliter millilitre", "l L liter litre", "gal gallon"),
        *("s sec second", "min minute", "h hr hour", "day", "week", "month", "yr year"),
        *("ms", "mph", "kph km/h kmh", "m/s", "Hz", "W", "kW", "V", "N", "J", "kJ", "K", "Pa"),
        *("$ usd dollar us$", "\u20ac eur euro", "\u00a3 gbp", "\u00a5 jpy yen", "\u20b9 rs rupee"),
        *(
            "cent c\u00a2",
            "\u00b0 degree deg",
            "\u00b0C celsius",
            "\u00b0F fahrenheit",
            "rad radian",
            "unit",
            "mol",
        ),
    )
    for unit in names.split()
}
_ORDINAL = re.compile(r"(?:st|nd|rd|th)[ .]*")
_PERCENT = re.compile(r"\s*(?:%|per\s?cent(?:age points?)?|pct)\s*", re.IGNORECASE)
_PART = re.compile(r"[A-Za-z\u00b0$\u20ac\u00a3\u00a5\u20b9\u00b5'-]+(?:\s*\^\s*\{?[23]\}?)?")
_NO_UNIT = re.compile(  # words after which the number before them is not what is said
    r"or|and|than|not|plus|minus|over|to|through|squared|cubed|half|halves|thirds?|quarters?"
    r"|fourths|fifths|tenths|hundredths|thousandths|factorial|negative|point|but|if|unless|mod"
    r"|pi|sin|cos|tan|log|ln|exp|sqrt|root|divided|multiplied|raised|power|via|except"
    rf"|{_ONES}|{_TENS}",
    re.IGNORECASE,
)
_AFTER = re.compile(  # what only explains the number before it
    r"\s*(?:[,;\u2014:]\s*(?=[A-Za-z']{2})|\s\u2013\s(?=[A-Za-z]{2})|\((?=[^()]*[A-Za-z]{2})"
    r"|\b(?:because|since|as|so|which|when|where|after|by|for|not|rather|instead)\b)"
)
_FIRST_WORD = re.compile(r"[\s(,;:\u2014\u2013]*([A-Za-z]*)")


class Quantity(NamedTuple):
    """A number as it was written."""

    value: Fraction
    unit: str = ""  # canonical; % is one; empty where none is named
    places: int | None = None  # digits after the point; None for whole numbers and fractions
    significant: int = 0  # digits from the first that is not 0


def characters(text: str) -> str:
    """Return the text in ASCII where that is the same: digits of every script, full-width signs,
    minus signs, vulgar fractions, spaces; raised digits become ^{...}."""
    if text.isascii():
        return text
    text = _SUPERSCRIPT.sub(lambda found: "^{" + found[0].translate(_LOWERED) + "}", text)
    return "".join(c if c.isascii() else _ascii(c) for c in text.translate(_CHARACTERS))


def _ascii(c: str) -> str:
    digit = unicodedata.decimal(c, None)
    if digit is not None:
        return str(digit)
    if unicodedata.category(c) == "Zs":
        return " "
    if unicodedata.category(c) == "Cf":
        return ""  # of no width
    if "FRACTION" in unicodedata.name(c, "") or 0xFF00 <= ord(c) < 0xFFEF:
        folded = unicodedata.normalize("NFKC", c).replace("\u2044", "/")
        return f" {folded} " if "/" in folded else folded
    return c


def bare(text: str) -> str:
    """Return the text without the marks that enclose all of it: bold, code, quotes, $...$,
    \\text{...}."""
    text = text.strip()
    for _ in range(6):
        found = _WRAPS.fullmatch(text)
        mark = (found and found.lastgroup) or ""
        inside = found[mark].strip() if found and mark else ""
        if not inside or (found and mark in "abdij" and _split(inside, found)):
            return text
        text = inside
    return text


def _split(inside: str, found: re.Match) -> bool:
    """Return true if the marks are those of two pieces: **a** or **b**."""
    mark = found[0][: found.start(found.lastgroup or 0)]
    closing = {"\\(": "\\)", "\\[": "\\]"}.get(mark, mark + " ")
    opening = mark if closing != mark + " " else " " + mark
    return closing in inside and opening in inside


def untexed(text: str) -> str:
    """Return the text with LaTeX's spacing, fonts and plain fractions written out."""
    text = characters(text)
    if "\\" in text:
        text = text.replace("~", " ")
    if "\\" in text or "{" in text or "\u00b0" in text:
        for pattern, instead in _REPLACED:
            text = pattern.sub(instead, text)
        text = _TEXT.sub(r" \1 ", text)
        text = _FRAC.sub(lambda f: f" {f[1] or f[2]}/{f[3] or f[4]} ", text)
    return " ".join(text.split())


def quantity(text: str) -> Quantity | None:
    """Return the one number that a text says, with its unit; None if it says anything else."""
    if len(text) > LONGEST:
        return None
    text = bare(untexed(bare(text))).rstrip(" .,;:")
    place = _BEFORE.match(text)
    assert place is not None
    sign = _SIGN.match(text, place.end())
    assert sign is not None
    if sign["sign"] and sign["inner"]:
        return None
    read = _literal(text, sign.end())
    if read is None:
        return None
    found, end = read
    if (sign["sign"] or sign["inner"] or "+") not in "+":
        found = found._replace(value=-found.value)
    money = _UNITS[(sign["money"] or "").strip(" .").lower()] if sign["money"] else ""
    return _with_unit(found, text[end:], money)


def _literal(text: str, start: int) -> tuple[Quantity, int] | None:
    """Return the number that begins at a place, and where it ends."""
    word = _WORD.match(text, start)
    if word is not None and word[0]:
        value = sum(_WORTH[word[part].lower()] for part in ("tens", "ones") if word[part])
        return Quantity(Fraction(value)), word.end()
    found = _LITERAL.match(text, start)
    if found is None or len(found[0]) > DIGITS:
        return None
    if found["continental"]:
        plain = re.sub("[. ]", "", found["continental"]).replace(",", ".")
        return _decimal(plain), found.end()
    if found["under"]:
        over, under = int(found["over"]), int(found["under"])
        if not over < under:
            return None  # 7 8/2 is no mixed number
        return Quantity(_decimal(found["whole"]).value + Fraction(over, under)), found.end()
    if found["d"]:
        under_ = _decimal(found["d"]).value
        return (Quantity(_decimal(found["n"]).value / under_), found.end()) if under_ else None
    if found["mantissa"]:
        power = int(found["e"] or found["power"])
        if abs(power) > DIGITS:
            return None
        return Quantity(_decimal(found["mantissa"]).value * Fraction(10) ** power), found.end()
    number = _decimal(found["decimal"])
    after = re.compile(r"!(?![!=])").match(text, found.end())
    if after is None:
        return number, found.end()
    if number.places is not None or number.value > DIGITS:
        return None
    return Quantity(Fraction(math.factorial(int(number.value)))), after.end()


def _decimal(digits: str) -> Quantity:
    plain = re.sub("[, ']", "", digits)
    places = len(plain.partition(".")[2]) if "." in plain else None
    return Quantity(Fraction(plain), "", places, len(plain.replace(".", "").lstrip("0")))


def _with_unit(found: Quantity, rest: str, unit: str) -> Quantity | None:
    """Return the number with the unit that follows it; None if something else does."""
    scale = _SCALE.match(rest)
    if scale is not None:
        found = Quantity(found.value * _SCALES[(scale[1] or "thousand").lower()])
        rest = rest[scale.end() :]
    percent = _PERCENT.match(rest)
    if percent is not None:
        unit, rest = "%", rest[percent.end() :]
    after = _AFTER.search(rest)
    if after is not None:
        word = _FIRST_WORD.match(rest, after.start())
        again = "(" in after[0] and word is not None and word[1].lower() in _WORTH  # 3 (three)
        denied = word is not None and word[1].lower() == "not"  # 3, not 4
        if word is not None and _NO_UNIT.fullmatch(word[1]) and not (again or denied):
            return None
        rest = rest[: after.start()]
    if percent is not None:
        return None if rest.strip(" .") else found._replace(unit="%")
    if _ORDINAL.fullmatch(rest):
        return found
    named = unit_of(rest)
    return None if named is None else found._replace(unit=named or unit)


def unit_of(text: str) -> str | None:
    """Return the unit in canonical form: "cm" of " centimetres"; empty for none, None for what is
    no unit."""
    attached, text = not text.startswith(" "), text.strip(" .,;:)")
    if not text:
        return ""
    if _known(text) is not None:
        return _known(text)
    parts = re.split(r"\s+|(/)", re.sub(r"\s*\^\s*", "^", text))
    names = [_unit_word(part) for part in parts if part and part != "/"]
    if (
        not names
        or None in names
        or (attached and names[0] not in _UNITS.values())
        or len(names) > 8
    ):
        return None
    known = [str(name) for name in names]
    if len(known) > 1 and known[0] in ("square", "sq", "cubic"):
        return f"{known[1]}^{3 if known[0] == 'cubic' else 2}"
    if len(known) == 3 and known[1] == "per":
        return f"{known[0]}/{known[2]}"
    if "/" in parts:
        return "/".join(known)
    return known[0] if "of" in known[1:] else known[-1]


def _known(word: str) -> str | None:
    """Return the unit that a word names; of one letter its case counts, so 5G is no mass."""
    lower = word.lower() if len(word) > 1 else word
    return _UNITS.get(word) or _UNITS.get(lower) or _UNITS.get(lower.rstrip("s"))


def _unit_word(word: str) -> str | None:
    word = word.strip(".,()'\"*")
    base, _, power = word.partition("^")
    if not _PART.fullmatch(word) or _NO_UNIT.fullmatch(base):
        return None
    known = _known(base)
    if known is not None:
        return known + ("^" + power.strip("{}") if power else "")
    if power or (
        len(base) < 3 and base.lower() not in ("a", "an", "of", "in", "on", "at", "sq", "it", "he")
    ):
        return None
    return base.lower().removesuffix("s") if len(base) > 3 else base.lower()


def agree(gold: Quantity, said: Quantity) -> bool:
    """Return true if two quantities are the same: equal values, or a decimal of at least 6
    significant digits that rounds the other; units agree where both name one.

    50% is 50 and 0.5; but what is at most 1 is not read as a percentage, so 0.5% is not 0.5.
    """
    if (gold.unit == "%") != (said.unit == "%"):
        share, other = (gold, said) if gold.unit == "%" else (said, gold)
        if other.unit:
            return False
        hundredth = share._replace(
            value=share.value / 100, places=share.places and share.places + 2
        )
        return _equal(hundredth, other) or (abs(other.value) > 1 and _equal(share, other))
    if gold.unit and said.unit and gold.unit != said.unit:
        return False
    return _equal(gold, said)


def _equal(a: Quantity, b: Quantity) -> bool:
    if a.value == b.value:
        return True
    if a.places is None:
        a, b = b, a
    if b.places is not None and a.places is not None and b.places < a.places:
        a, b = b, a  # a is the coarser of two decimals
    if a.places is None or a.significant < SIGNIFICANT or b.value.denominator == 1:
        return False
    return abs(a.value - b.value) * 2 <= Fraction(1, 10**a.places)
