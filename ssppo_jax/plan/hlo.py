"""Read from a compiled program's text what it sends between devices, by kind of collective."""

from __future__ import annotations

import re
from collections import defaultdict

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_KIND = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|async_execution_thread.*?calls|called_computations)=\{?%?([\w.\-]+)"
)
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_BOUND = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


def collective_bytes(text: str) -> dict[str, float]:
    """Return the bytes that each device receives, by kind, from a module's optimised text.

    A loop counts as often as the largest constant of its condition. That is exact for scans and an
    upper bound for a bounded while loop. An all-reduce passes its array twice. Copies that the
    compiler makes of one collective to overlap it share a channel and count once, where they run
    least often.
    """
    computations = _computations(text)
    entry = next((name for name, (is_entry, _) in computations.items() if is_entry), None)
    once: dict[str, tuple[str, float]] = {}  # of each channel: its kind and the bytes of one pass
    times: dict[str, int] = {}

    def walk(name: str, passes: int) -> None:
        for line in computations.get(name, (False, []))[1]:
            if found := _KIND.search(line):
                channel = re.search(r"channel_id=(\d+)", line)
                key = channel[1] if channel else f"{name}: {line}"
                once[key] = found[2], _received(found[1], found[2], started=bool(found[3]))
                times[key] = min(passes, times.get(key, passes))
            if bounds := _LOOP.search(line):
                walk(bounds[2], passes * _trips(computations, bounds[1]))
                continue
            for called in _CALLED.findall(line):
                if called in computations and called != name:
                    walk(called, passes)

    if entry is not None:
        walk(entry, 1)
    total: dict[str, float] = defaultdict(float)
    for key, (kind, size) in once.items():
        total[kind] += times[key] * size
    return dict(total)


def gathered_in_loops(text: str) -> list[int]:
    """Return the elements of every array that an all-gather makes inside a loop of a module."""
    computations = _computations(text)
    found: dict[str, list[int]] = {}  # of each computation that a loop reaches

    def walk(name: str) -> None:
        if name in found:
            return
        lines = computations.get(name, (False, []))[1]
        matches = [match for match in map(_KIND.search, lines) if match]
        found[name] = [
            max(_size(dims) for _, dims in _ARRAY.findall(match[1]))
            for match in matches
            if match[2] == "all-gather"
        ]
        for line in lines:
            bounds = _LOOP.search(line)
            for called in [bounds[2]] if bounds else _CALLED.findall(line):
                walk(called)

    for _, lines in computations.values():
        for bounds in filter(None, map(_LOOP.search, lines)):
            walk(bounds[2])
    return [size for sizes in found.values() for size in sizes]


def _computations(text: str) -> dict[str, tuple[bool, list[str]]]:
    """Map each computation's name to (whether it is the entry, its lines)."""
    found: dict[str, tuple[bool, list[str]]] = defaultdict(lambda: (False, []))
    lines: list[str] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = []
            found[head[2]] = (bool(head[1]), lines)
        else:
            lines.append(line)
    return dict(found)


def _trips(computations: dict[str, tuple[bool, list[str]]], condition: str) -> int:
    bounds = [
        int(n) for line in computations.get(condition, (False, []))[1] for n in _BOUND.findall(line)
    ]
    return max(bounds, default=1)


def _received(result: str, kind: str, *, started: bool) -> float:
    """Count bytes from the result's type; a started all-gather's result is (input, output)."""
    sizes = [BYTES[dtype] * _size(dims) for dtype, dims in _ARRAY.findall(result) if dtype in BYTES]
    if not sizes:
        return 0.0
    return (max(sizes) if started else sum(sizes)) * (2.0 if kind == "all-reduce" else 1.0)


def _size(dims: str) -> int:
    size = 1
    for n in filter(None, dims.split(",")):
        size *= int(n)
    return size
