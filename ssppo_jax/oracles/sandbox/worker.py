"""A process of its own for comparing answers, killed when one comparison takes too long. See
`worker_child` for why."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import secrets
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ssppo_jax.errors import ConfigError, UserError

LOADING = 120.0  # seconds that importing a library and making a data set may take
MOST_SAID = 1 << 20  # bytes of a line
FILE = Path(__file__).with_name("worker_child.py")


class Worker:
    """Ask the process, which is started at the first question and again after it was killed.

    Args:
        seconds: that one comparison may take.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._child: subprocess.Popen | None = None
        self._rest = b""

    def ask(self, kind: str, **values: Any) -> dict:
        """Return the reply of `worker_child`; {"unreadable": "killed"} if none came in time or the
        answer ended it.

        Raises:
            ConfigError: a library is missing.
            UserError: the process cannot even load.
        """
        word = secrets.token_hex(16)  # lines without it are an answer's own
        request = pickle.dumps((kind, 2 * self.seconds + 1, values | {"word": word}))
        begun = self._begun(request, word)
        if begun is None:  # perhaps an earlier answer's doing: once more, in a new process
            self.close()
            begun = self._begun(request, word)
        if begun is None:
            self.close()
            raise UserError(
                f"the process that compares answers ended or hung while loading: {sys.executable}"
                f" {FILE}"
            )
        if begun.startswith("missing"):
            raise ConfigError(
                f"answers cannot be checked: {begun.removeprefix('missing').strip()}; "
                "pip install 'ssppo_jax[tasks]' 'math-verify[antlr4_13_2]==0.9.0'"
            )
        text = self._said(word, self.seconds)
        if text is None:
            self.close()
            return {"unreadable": "killed"}
        with contextlib.suppress(ValueError, RecursionError):
            reply = json.loads(text)
            if isinstance(reply, dict) and isinstance(reply.get("score", 0.0), int | float):
                return reply
        return {"unreadable": "no reply"}

    def _begun(self, request: bytes, word: str) -> str | None:
        return self._said(word, LOADING) if self._send(request) else None

    def _said(self, word: str, seconds: float) -> str | None:
        """Return the next line with this word, without it; None if none comes in time."""
        end = time.monotonic() + seconds
        while (line := self._line(end - time.monotonic())) is not None:
            said, _, text = line.partition(b" ")
            if said == word.encode():
                return text.decode("utf-8", "replace")
        return None

    def _process(self) -> subprocess.Popen:
        """Return the process, started if there is none."""
        if self._child is not None:
            return self._child
        # each of their threads would take of the memory allowed
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._rest = b""
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-B", str(FILE)],  # -P: its folder is no place to import from
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=os.environ | threads,
            start_new_session=True,  # Ctrl-C is for the run, which ends this process itself
        )
        return self._child

    def _send(self, request: bytes) -> bool:
        stream = self._process().stdin
        assert stream is not None
        try:
            while request:
                request = request[stream.write(request) :]
        except OSError:
            return False
        return True

    def _line(self, seconds: float) -> bytes | None:
        """Return the next line; None if it does not come in time or the process has ended."""
        end, stream = time.monotonic() + seconds, self._process().stdout
        assert stream is not None
        ready = select.poll()  # not select: a large run has more than 1024 files open
        ready.register(stream, select.POLLIN)
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not ready.poll(left * 1000):
                return None
            piece = os.read(stream.fileno(), 65536)
            if not piece:
                return None
            self._rest += piece
            if len(self._rest) > MOST_SAID:
                return None
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._child is not None:
            self._child.kill()
            for stream in (self._child.stdin, self._child.stdout):
                if stream is not None:
                    stream.close()
            self._child.wait()
            self._child = None

    def __del__(self):
        self.close()
