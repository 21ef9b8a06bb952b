"""Replies of a paid endpoint kept on disk, one JSON line each, so that nothing is asked twice."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from ssppo_jax.errors import UserError
from ssppo_jax.files import whole_lines


class Replies:
    """Request -> number, found by the SHA-256 of the request. Safe to use from several threads.

    A torn last line (the process was killed while writing) is dropped. Each line holds the hash and
    the number only: no text of the data, and no key.

    Raises:
        UserError: a line other than the last is not an entry.
    """

    def __init__(self, path: Path):
        self.path, self.lock, self.known = path, threading.Lock(), {}
        if path.exists():
            self._load()

    def _load(self) -> None:
        for number, line in enumerate(whole_lines(self.path)[0], 1):
            try:
                entry = json.loads(line)
                self.known[str(entry["key"])] = float(entry["value"])
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{self.path}:{number}: not a reply ({type(error).__name__}); delete this line:"
                    " it is asked again"
                ) from error

    def get(self, request: dict[str, Any]) -> float | None:
        return self.known.get(key_of(request))

    def put(self, request: dict[str, Any], value: float) -> None:
        line = json.dumps({"key": key_of(request), "value": value}).encode() + b"\n"
        with self.lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(line)
            self.known[key_of(request)] = value


def key_of(request: dict[str, Any]) -> str:
    """What a request is kept under."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
