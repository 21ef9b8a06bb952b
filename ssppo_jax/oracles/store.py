"""Records kept on disk by key, so that nothing is judged or paid for twice."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from ssppo_jax.errors import UserError
from ssppo_jax.files import append, whole_lines

T = TypeVar("T")


class KeyedStore(Generic[T]):
    """Map keys to records that are appended to a file, one JSON line each.

    Several threads may use one store; one process at a time may write the file. A kill can tear the
    last line: it is cut off and `torn` is true.

    Args:
        path: the file; it and its folder appear with the first record.
        read: makes a record of the fields of a line. It raises ValueError, TypeError, KeyError or
          AttributeError for fields that hold none.

    Raises:
        UserError: the file cannot be read, or a whole line holds no record: the file was edited or
          the disk is bad.
    """

    def __init__(self, path: str | os.PathLike, read: Callable[[dict[str, Any]], T]):
        self.path, self.read, self.lock = Path(path), read, threading.Lock()
        self.known: dict[str, T] = {}
        try:
            lines, self.torn = whole_lines(self.path) if self.path.exists() else ([], False)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            try:
                fields = json.loads(line)
                self.known[fields["key"]] = read(fields)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise UserError(
                    f"{path}:{number}: not a record (no JSON, or a field is missing or wrong)."
                    " Delete this line, or the file: what it held will then be asked again."
                ) from error

    def add(self, records: Mapping[str, dict[str, Any]], *, sync: bool = True) -> None:
        """Append the fields of records by key; `sync` makes them survive a power cut.

        The text is ASCII. float32 and float64 values survive it exactly.

        Raises:
            WriteError: the disk is full; none of the records is kept.
        """
        lines = [json.dumps({"key": key, **fields}) + "\n" for key, fields in records.items()]
        made = {key: self.read(fields) for key, fields in records.items()}
        if not lines:
            return
        with self.lock:
            append(self.path, "".join(lines).encode("ascii"), durable=sync)
            self.known |= made
