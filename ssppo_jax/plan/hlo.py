"""Read from a compiled program's text what it sends between devices, by kind of collective."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

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
_BOUND = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LISTED = re.compile(r"replica_groups=\{((?:\{[\d,]+\},?)+)\}")
_RANGE = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}")
_TURNED = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}")
_SLICES = re.compile(
    r"= \((.*?), u32\[\].* recv\(.*_xla_megascale_target=\"\{([\d,:]+)\}"
    r".*_xla_megascale_transfer_type=\"(\w+)\""
)
_NAMED = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_ELEMENT = re.compile(r"= [su]32\[\]\S* get-tuple-element\(.*\), index=(\d+)")
_ADD = re.compile(r" add\(%?([\w.\-]+), %?([\w.\-]+)\)")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


# What the TPU compiler calls the computations around a collective, and what they are for.
TPU_NAMES = {
    "windowed_dot_general_body_ag": "all-gather",
    "windowed_dot_general_body_rs": "reduce-scatter",
    "all-reduce-scatter": "reduce-scatter",
}


class Collective(NamedTuple):
    """Hold one collective of a program, with the passes of the loops around it."""

    kind: str
    size: float  # bytes that a device receives in one pass
    passes: int
    groups: np.ndarray | None  # [groups, devices of one]; None where none are named
    pairs: np.ndarray | None = None  # of a permutation, [n, (from, to)]
    slices: int = 0  # that exchange, of what passes between TPU slices

    def between_nodes(self, per_node: int) -> float:
        """Return the bytes of all passes that enter a node of `per_node` devices, for each of them.

        A group's devices on one node fetch what the other nodes hold once, each an equal share. An
        exchange of blocks between pairs fetches the blocks of the other nodes. A permutation's
        array crosses where its two devices are on two nodes. What passes between slices always
        does.
        """
        if self.slices:
            return self.passes * self.size * (self.slices - 1) / self.slices
        if self.pairs is not None:
            source, target = (self.pairs // per_node).T
            entering = np.bincount(target[source != target], minlength=1)
            return self.passes * self.size * entering.max() / per_node
        if self.groups is None:
            return 0.0
        nodes = [len(np.unique(group // per_node)) for group in self.groups]
        widest = self.groups[int(np.argmax(nodes))]
        apart, total = max(nodes), self.passes * self.size
        shared = 1.0 if self.kind == "all-to-all" else len(widest) / apart
        return total * (apart - 1) / apart / shared


def by_kind(found: Iterable[Collective]) -> dict[str, float]:
    """Return the bytes that each device receives, of each kind of collective."""
    total: dict[str, float] = defaultdict(float)
    for one in found:
        total[one.kind] += one.passes * one.size
    return dict(total)


def collectives(text: str, longest: int = 0) -> list[Collective]:
    """Return the collectives of a module's optimised text.

    A loop counts as often as the compiler says, else as often as its counter's stride fits into the
    largest constant of its condition. That is exact for scans and for the compiler's own loops over
    the parts of a product. A loop that ends by what it computes, as decoding does, counts `longest`
    times if that is given. An all-reduce passes its array twice, and a reduce-scatter all its
    parts. Copies that the compiler makes of one collective to overlap it share a channel and count
    once, where they run least often. Of a fusion that reduces and scatters, the copy behind a loop
    is the loop's last pass.
    """
    computations, entry = _computations(text)
    once: dict[str, Collective] = {}  # by channel

    def walk(name: str, passes: int) -> None:
        for line in computations.get(name, []):
            if found := _KIND.search(line):
                channel = re.search(r"channel_id=(\d+)", line)
                key = channel[1] if channel else f"{name}: {line}"
                groups, pairs, kind = _groups(line), _pairs(line), _purpose(found[2], name)
                ways = 1 if groups is None else groups.shape[1]
                size = _received(found[1], found[2], ways, started=bool(found[3]))
                if (found[2], kind) == ("all-reduce", "reduce-scatter"):
                    size /= 2  # its text holds the whole array, which passes once
                chosen = max if "all-reduce-scatter" in name else min
                number = chosen(passes, once[key].passes) if key in once else passes
                once[key] = Collective(kind, size, number, groups, pairs)
            elif found := _SLICES.search(line):
                kind = found[3].lower().replace("_", "-")
                size = _received(found[1], kind, 1, started=False)
                slices = _many(found[2])
                once[f"{name}: {line}"] = Collective(kind, size, passes, None, None, slices)
            if bounds := _LOOP.search(line):
                known = _KNOWN.search(line)
                condition, body = bounds.groups()
                trips = int(known[1]) if known else _trips(computations, condition, body, longest)
                walk(body, passes * trips)
                continue
            for called in _CALLED.findall(line):
                if called in computations and called != name:
                    walk(called, passes)

    walk(entry, 1)
    return list(once.values())


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Return the lines of each computation by its name, and the name of the entry."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    entry = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = found[head[2]] = []
            if head[1] and not entry:
                entry = head[2]
        else:
            lines.append(line)
    return found, entry


def _trips(computations: dict[str, list[str]], condition: str, body: str, longest: int) -> int:
    lines = computations.get(condition, [])
    bound = max((int(n) for line in lines for n in _BOUND.findall(line)), default=1)
    counters = [int(found[1]) for line in lines if (found := _ELEMENT.search(line))]
    if len(counters) != 1:
        return longest or bound
    return -(-bound // _stride(computations.get(body, []), counters[0]))


def _stride(lines: list[str], counter: int) -> int:
    """Return what a loop's body adds to its counter, an element of the tuple it carries.

    A compiler that writes two passes of a loop in one adds 2.
    """
    named = {found[2]: line for line in lines if (found := _NAMED.search(line))}
    root = next((line for line in lines if line.lstrip().startswith("ROOT")), "")
    carried = re.findall(r"%([\w.\-]+)", root.rpartition(" tuple(")[2])
    added = _ADD.search(named.get(carried[counter], "")) if counter < len(carried) else None
    if added is None:
        return 1
    constants = [found for name in added.groups() if (found := _BOUND.search(named.get(name, "")))]
    return max(int(constants[0][1]), 1) if len(constants) == 1 else 1


def _received(result: str, kind: str, ways: int, *, started: bool) -> float:
    """Count bytes from the result's type.

    The result of a started all-gather or reduce-scatter is (inputs, outputs), a started
    permutation's (input, output, marks)."""
    sizes = [
        BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in _ARRAY.findall(result)
        if dtype in BYTES
    ]
    if not sizes:
        return 0.0
    if started and kind in ("all-gather", "reduce-scatter"):
        sizes = sizes[len(sizes) // 2 :]
    elif started and kind == "collective-permute":
        sizes = [max(sizes)]
    return sum(sizes) * {"all-reduce": 2.0, "reduce-scatter": float(ways)}.get(kind, 1.0)


def _groups(line: str) -> np.ndarray | None:
    """Read which devices exchange: written out, as a reshaped and transposed range, or as axes of
    a mesh."""
    if mesh := _MESH.search(line):
        return _along(mesh[1], mesh[2], mesh[3])
    if listed := _LISTED.search(line):
        rows = [row.split(",") for row in re.findall(r"\{([\d,]+)\}", listed[1])]
        return np.array(rows, int) if len({len(row) for row in rows}) == 1 else None
    if range_ := _RANGE.search(line):
        return _turned(range_[2], range_[3]).reshape(_numbers(range_[1]))
    return None


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _turned(sizes: str, order: str | None) -> np.ndarray:
    """Return a range of devices, reshaped to sizes and transposed by an order of the axes."""
    shape = _numbers(sizes)
    devices = np.arange(math.prod(shape)).reshape(shape)
    return devices.transpose(_numbers(order)) if order else devices


def _pairs(line: str) -> np.ndarray | None:
    """Read from which device to which a permutation sends."""
    found = _PAIRS.search(line)
    return None if found is None else np.array(re.findall(r"(\d+),(\d+)", found[1]), int)


def _purpose(kind: str, computation: str) -> str:
    """Return what a collective is for.

    TPU programs gather a weight, or reduce and scatter a gradient, by permutations in a loop beside
    the product. Elsewhere they reduce and scatter in one fusion, whose text is an all-reduce and a
    cut."""
    return next((whole for mark, whole in TPU_NAMES.items() if mark in computation), kind)


def _many(numbers: str) -> int:
    """Count the numbers of a list with ranges, such as 1,2 or 1:4."""
    ends = [[int(n) for n in part.split(":")] for part in numbers.split(",")]
    return sum(end[-1] - end[0] + 1 for end in ends)


def _along(mesh: str, order: str | None, axes: str) -> np.ndarray | None:
    """Group the devices of a mesh along axes, e.g. "'a'=2,'b'=4" along "'b'".

    A part of an axis, as 'b':(2)2, lies between the devices before it and those after it. `order`
    lists the mesh's devices, or says how a range is reshaped and transposed to give them.
    """
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh)}
    parts = {
        name: (int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
        if name in sizes
    }
    shape: list[int] = []
    along = []
    for name, size in sizes.items():
        before, part = parts.get(name, (1, 1))
        along.append(len(shape) + 1)
        shape += [before, part, size // (before * part)]
    if order and (turned := _TURNED.search(order)):
        devices = _turned(turned[1], turned[2])
    else:
        devices = np.array(_numbers(order) if order else range(math.prod(shape)))
    width = math.prod(part for _, part in parts.values())
    moved = np.moveaxis(devices.reshape(shape), along, range(-len(along), 0))
    return moved.reshape(-1, width)
