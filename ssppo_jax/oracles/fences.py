"""Find the fenced blocks of a Markdown text, as CommonMark reads them, in one pass over its lines.

A fence is ``` or ~~~, or longer. It may stand in a list, then its indentation is taken off the
code. It is closed by a line of the same marks, at least as many, indented at most three spaces
more; never by one inside a docstring of its own code. The last block may stay open: a response
that was cut off."""

from __future__ import annotations

import re
from typing import NamedTuple

PYTHON = ("python", "python3", "py")

_OPENING = re.compile(
    r"(?P<indent>[ \t]*(?:>[ \t]?|(?:[-*+]|[0-9]{1,9}[.)])[ \t]+)*)"
    r"(?P<fence>`{3,}(?=[^`]*$)|~{3,})[ \t]*(?:\{\s*\.?)?(?P<language>[\w+#-]*)"
)
_CLOSING = re.compile(r"(?P<indent>(?:[ \t]*>)?[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*")
_TOKEN = re.compile(
    r"#[^\n]*|\"\"\"|'''|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'", re.DOTALL
)  # of one line of Python: comments and strings, which may hold quotes


class Block(NamedTuple):
    """A fenced block."""

    language: str  # the first word after the fence, in lower case; empty if there is none
    code: str  # each line with its end, \n


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a text in their order."""
    found: list[Block] = []
    lines, at = re.findall(r"[^\n]*\n|[^\n]+", text), 0
    last = {quote: _last_line_with(lines, quote) for quote in ('"""', "'''")}
    while at < len(lines):
        opening = _OPENING.match(lines[at].rstrip("\r\n"))
        at += 1
        if opening is None:
            continue
        code, quote = [], None  # the docstring that is open
        while at < len(lines) and (
            (quote is not None and at < last[quote]) or not _closes(lines[at], opening)
        ):
            line = _without(re.sub(r"\r?\n$", "\n", lines[at]), opening["indent"])
            code.append(line)
            quote = _open_after(line, quote)
            at += 1
        at += 1
        found.append(Block(opening["language"].lower(), "".join(code)))
    return found


def _last_line_with(lines: list[str], quote: str) -> int:
    return max((n for n, line in enumerate(lines) if quote in line), default=-1)


def _closes(line: str, opening: re.Match) -> bool:
    closing = _CLOSING.fullmatch(line.rstrip("\r\n"))
    return (
        closing is not None
        and closing["fence"][0] == opening["fence"][0]
        and len(closing["fence"]) >= len(opening["fence"])
        and len(closing["indent"].expandtabs(4)) <= len(opening["indent"].expandtabs(4)) + 3
    )


def _without(line: str, indent: str) -> str:
    """Return a line of code without the indentation, the quote marks or the list around it."""
    if ">" in indent:
        return re.sub(r"^[ \t]*>[ \t]?", "", line)
    return line[min(len(indent), len(line) - len(line.lstrip(" \t"))) :]


def _open_after(line: str, quote: str | None) -> str | None:
    """Return the triple quote that is open at the end of a line."""
    at = 0
    while True:
        if quote is not None:
            end = line.find(quote, at)
            if end < 0:
                return quote
            at, quote = end + 3, None
        token = _TOKEN.search(line, at)
        if token is None:
            return None
        at = token.end()
        if token[0] in ('"""', "'''"):
            quote = token[0]
