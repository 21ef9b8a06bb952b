"""Write files that survive a kill, read JSON and JSONL, find the cache and packages' files."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ssppo_jax.errors import ConfigError, DataError, WriteError

log = logging.getLogger(__name__)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What other readers (str.splitlines) take for the end of a line, and halves of surrogate pairs,
# which UTF-8 cannot hold. json.dumps escapes the other line ends itself.
_ESCAPED = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


def default_cache() -> Path:
    """Return $SSPPO_CACHE, or ~/.cache/ssppo_jax.

    Raises:
      ConfigError: neither is known.
    """
    given = os.environ.get("SSPPO_CACHE") or "~/.cache/ssppo_jax"
    try:
        return Path(given).expanduser()
    except RuntimeError:  # a user without an entry in the system's list, and no HOME
        raise ConfigError(
            "no folder for the cache is known; set SSPPO_CACHE to one, or HOME"
        ) from None


def installed(distribution: str, file: str, *, remedy: str) -> Path:
    """Return a file of an installed package, which is found by its metadata and not imported.

    Raises:
      ConfigError: the package or the file is not there; ends in `remedy`.
    """
    try:
        path = Path(str(importlib.metadata.distribution(distribution).locate_file(file)))
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"{distribution} is not installed; {remedy}") from None
    if not path.exists():
        raise ConfigError(f"{distribution} is installed but lacks {file}; {remedy}")
    return path


@contextlib.contextmanager
def writing(what: Path | str) -> Iterator[None]:
    """Name the file or folder that the block writes in the error that a full disk raises.

    Raises:
      WriteError: the block raised an OSError.
    """
    try:
        yield
    except (WriteError, BrokenPipeError):
        raise
    except OSError as error:
        raise WriteError(
            f"{what} could not be written: {error.strerror or error}; free some space, or give"
            " another place, and run the same command again"
        ) from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader sees the old content or the new one, also after a power cut.

    Raises:
      WriteError: the disk is full, or the place cannot be written to; the old content stands.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()  # give the space back
            raise
        sync(path.parent)


def append(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Add bytes to the end of a file, all or none. `durable` makes them survive a power cut.

    Raises:
      WriteError: the disk is full; what was written of them is cut off again.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            before, left = file.tell(), memoryview(data)
            try:
                while left:
                    left = left[file.write(left) :]
                if durable:
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return JSON text that UTF-8 can hold; without `indent` it is one line for every reader.

    A number that is not finite, such as an open bound, becomes null: NaN and Infinity are no JSON,
    although Python writes them.
    """
    text = json.dumps(_without_nan(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _without_nan(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _without_nan(item) for key, item in value.items()}
        case list() | tuple():
            return [_without_nan(item) for item in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value atomically, in UTF-8 (`to_json`)."""
    write_lines(path, [to_json(value, indent=1)])


def read_json(path: Path) -> Any:
    """Read one JSON value.

    Raises:
      DataError: the file is not JSON; names it.
    """
    return parse_json(path.read_bytes(), path)


def parse_json(text: bytes, path: Path) -> Any:
    """Return the JSON value of a file's content.

    Raises:
      DataError: it is not JSON; names the file.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error


def run_config(folder: Path) -> dict[str, Any]:
    """Return {"a.b": value} of the config that a run's folder records; empty where it is no
    run's."""
    try:
        record = read_json(folder / "config.json")
    except (DataError, OSError):
        return {}
    found = record.get("config") if isinstance(record, dict) else None
    return found if isinstance(found, dict) else {}


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of text atomically, in UTF-8."""
    content = "".join(line + "\n" for line in lines).encode()
    write_atomically(path, lambda file: file.write(content))


def write_records(path: Path, records: Iterable[dict]) -> None:
    """Write a JSONL file atomically: a record a line, in UTF-8."""
    write_lines(path, map(to_json, records))


def read_lines(data: bytes) -> list[bytes]:
    r"""Split bytes at \n, without a byte-order mark and without the \r of CRLF line ends.

    `str.splitlines` also splits at U+2028 and others, which are legal inside a JSON string.
    """
    lines = data.removeprefix(BYTE_ORDER_MARK).removesuffix(b"\n").split(b"\n") if data else []
    return [line.removesuffix(b"\r") for line in lines]


def whole_lines(path: Path) -> tuple[list[bytes], bool]:
    """Return the lines of an append-only file, and whether a kill had torn the last one.

    A torn line is cut off, so that the next one does not continue it.
    """
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return read_lines(data[:whole]), whole < len(data)


def read_records(path: Path) -> Iterator[dict]:
    """Read a JSONL file of records, oldest first; leave out a last line that a kill has torn.

    Raises:
      DataError: another line is not JSON; names file and line.
    """
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        number = data.count(b"\n") + 1
        log.warning("%s:%d: the last line is incomplete and left out", path, number)
    for number, line in enumerate(read_lines(data[:whole]), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not a JSON record: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: not a JSON record: a {type(record).__name__}")
        yield record


def sync(path: Path) -> None:
    """Make a file's content, or the renames inside a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
