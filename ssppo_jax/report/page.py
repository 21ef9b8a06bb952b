"""The pieces of the report's page: everything that is not markup of ours is escaped, and nothing
runs or is loaded."""

from __future__ import annotations

import html
from typing import Any


def text(value: Any) -> str:
    return "" if value is None else html.escape(str(value))


def missing(message: str) -> str:
    return f'<p class="missing">{text(message)}</p>'


def section(title: str, body: str) -> str:
    return f"<section><h2>{text(title)}</h2>{body}</section>"


def figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{text(caption)}</figcaption></figure>"


def grid(plots: list[str]) -> str:
    return f'<div class="grid">{"".join(f"<figure>{plot}</figure>" for plot in plots)}</div>'


def folded(summary: str, body: str) -> str:
    """Shown on a click; nothing when there is nothing in it."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>" if body else ""


def card(heading: str, body: str) -> str:
    return f'<article><h3 class="prompt">{text(heading)}</h3>{body}</article>'


def response(name: str, words: Any, badge: str = "") -> str:
    """A text of a model under its name, and what was measured of it."""
    score = f'<span class="score">{text(badge)}</span>' if badge else ""
    return (
        f"<div><b>{text(name)}</b> {score}<div"
        f' class="text">{text(words) or "<i>(empty)</i>"}</div></div>'
    )


def sides(left: str, right: str) -> str:
    return f'<div class="sides">{left}{right}</div>'


def table(head: list[str], rows: list[list[str]]) -> str:
    cells = ["".join(f"<td>{text(cell)}</td>" for cell in row) for row in rows]
    top = "".join(f"<th>{text(cell)}</th>" for cell in head)
    return (
        "<div"
        f' class="wide"><table><tr>{top}</tr>{"".join(f"<tr>{row}</tr>" for row in cells)}</table></div>'
    )


def tiles(values: list[tuple[str, str]]) -> str:
    inner = "".join(
        f"<div><span>{text(name)}</span><b>{text(value)}</b></div>" for name, value in values
    )
    return f'<div class="tiles">{inner}</div>'


def page(name: str, top: str, notes: list[str], body: str) -> str:
    listed = "".join(f"<li>{text(note)}</li>" for note in notes)
    listed = f"<aside><b>Incomplete records</b><ul>{listed}</ul></aside>" if listed else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src'
        " 'unsafe-inline'; "
        'img-src data:">'
        f"<title>{text(name)}: training report</title><style>{CSS}</style></head><body><main>"
        f"<h1>{text(name)}</h1>{top}{listed}{body}</main></body></html>\n"
    )


CSS = """
:root { --page: #fbfbfa; --card: #ffffff; --ink: #22262b; --soft: #687078; --rule: #e2e4e7; --warn: #fff4dc; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --card: #1d2126; --ink: #dfe3e8; --soft: #98a1ab; --rule: #323840; --warn: #3a3018; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 24px; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 10px; padding-bottom: 4px; border-bottom: 1px solid var(--rule); }
figure { margin: 0; padding: 10px; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
figcaption, .missing, .score, summary { color: var(--soft); font-size: 13px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 12px; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; }
.tiles div { padding: 8px 14px; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
.tiles span { display: block; color: var(--soft); font-size: 12px; }
.tiles b { font-size: 18px; font-variant-numeric: tabular-nums; }
aside { margin: 16px 0; padding: 10px 14px; background: var(--warn); border-radius: 8px; font-size: 14px; }
aside ul { margin: 4px 0 0; padding-left: 20px; }
article { margin: 0 0 12px; padding: 12px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
.prompt { margin: 0 0 8px; font-size: 14px; white-space: pre-wrap; overflow-wrap: anywhere; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; font-size: 14px; }
.sides > div { min-width: 0; }
.answer { margin: -4px 0 8px; color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.sides + .sides, details + .sides, .sides + details .sides { margin-top: 14px; padding-top: 10px;
  border-top: 1px solid var(--rule); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.score { margin-left: 6px; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin-top: 10px; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 3px 18px 3px 0; border-bottom: 1px solid var(--rule); }
details { margin-top: 10px; } summary { cursor: pointer; margin-bottom: 8px; }
pre { margin: 0; padding: 12px; overflow-x: auto; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; font-size: 12.5px; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 640px) { .sides { grid-template-columns: 1fr; } }
"""
