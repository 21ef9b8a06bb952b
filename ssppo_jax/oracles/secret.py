"""Notice a key in text that came from elsewhere, also after the usual ways of writing it otherwise.

An endpoint may echo a request with its headers, so its words are checked before they are shown."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator
from urllib.parse import unquote

TELLING = 6  # letters and digits in a row; fewer than these give nothing of a key away
NOT_OCTAL = str.maketrans("", "", "89")
LAYERS = 2  # encodings inside one another that are undone, as base64 inside a percent-encoded text


def holds(text: str, key: str) -> bool:
    """Return whether a text gives away a key, or 6 letters and digits of it in a row.

    Case, punctuation and line breaks do not hide it, nor does writing it backwards. Percent signs,
    HTML entities, escapes of JSON and Python, base64, base32, hexadecimal digits and character
    numbers are undone.
    """
    bare = _bare(key)
    telling = {bare[i : i + TELLING] for i in range(max(1, len(bare) - TELLING + 1))} - {""}
    texts = {text}
    for _ in range(LAYERS):
        texts |= {other for one in texts for other in _decoded(one)}
    bares = [_bare(one) for one in texts]
    return any(part in one or part in one[::-1] for one in bares for part in telling)


def _bare(text: str) -> str:
    """Return the letters and digits of a text in lower case."""
    return "".join(c for c in text if c.isalnum()).lower()


def _decoded(text: str) -> Iterator[str]:
    """Yield a text with each of the usual encodings undone."""
    yield unquote(text)
    yield html.unescape(text)
    yield re.sub(
        r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})", lambda m: chr(int(m[1] or m[2], 16)), text
    )
    joined = "".join(text.split()).replace("-", "+").replace("_", "/")
    for run in re.findall(r"[A-Za-z0-9+/]{8,}", joined):
        for start in range(4):  # where the key's own groups of four begin is not known
            yield _latin(base64.b64decode(run[start : start + (len(run) - start) // 4 * 4]))
    for run in re.findall(r"[A-Z2-7]{16,}", joined):
        for start in range(8):
            yield _latin(base64.b32decode(run[start : start + (len(run) - start) // 8 * 8]))
    numbers = re.findall(r"[0-9]{2,3}", text)  # of characters
    yield "".join(chr(int(n)) for n in numbers)
    yield "".join(chr(int(n, 8)) for n in numbers if n.translate(NOT_OCTAL) == n)
    for run in re.findall(r"[0-9a-fA-F]{12,}", re.sub(r"\W", "", text)):
        for start in range(2):
            yield _latin(bytes.fromhex(run[start : start + (len(run) - start) // 2 * 2]))


def _latin(data: bytes) -> str:
    return data.decode("latin-1")
