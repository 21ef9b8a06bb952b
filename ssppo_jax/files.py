"""What must be on the disk before anyone is told that it is, and where what can be made again is
kept."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """$SSPPO_CACHE, or ~/.cache/ssppo_jax."""
    return Path(os.environ.get("SSPPO_CACHE") or Path.home() / ".cache" / "ssppo_jax")


def whole_lines(path: Path) -> tuple[list[bytes], bool]:
    """The lines of a file that is only appended to, and whether a last one was torn by a kill: it
    is cut off.

    Else the next line would be glued to the torn one.
    """
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return data[:whole].splitlines(), whole < len(data)


def sync(path: Path) -> None:
    """Make a file's content, or the renames inside a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
