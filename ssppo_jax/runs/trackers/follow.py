"""Follow `metrics.jsonl` with a tracker, in a thread of its own that the run never waits for.

The thread reads the file, as far as it is written, and shows each record. A tracker that raises is
tried again later, from the record that failed; one that is slow falls behind. Neither costs the
run anything, and both catch up. `trackers/NAME.json` in the run's folder says how far it came.

A resume cuts the log back to the checkpoint and writes the cut records again, equal but for times.
Those that the tracker had shown are not shown again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ssppo_jax.errors import UserError
from ssppo_jax.files import read_json, read_lines, read_records, write_json
from ssppo_jax.runs.trackers.protocol import Run, Tracker

log = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 5.0, 300.0  # seconds before a failed call is tried again
BATCH = 64  # records that are marked as shown before they are: a kill loses them, or less


@dataclasses.dataclass
class Shown:
    """Hold what a tracker has shown, as in trackers/NAME.json."""

    id: str = ""
    records: int = 0  # of metrics.jsonl, from its beginning
    ahead: list[list] = dataclasses.field(default_factory=list)  # shown, and cut off by a resume
    tables: list[int] = dataclasses.field(default_factory=list)  # iterations of samples.jsonl
    failures: int = 0  # calls that raised
    error: str = ""  # of the last one


class Follower:
    """Show a run's log by one tracker. `wake` when there is more, `close` at the end."""

    def __init__(self, name: str, tracker: Tracker, run: Run):
        self.name, self.tracker, self.run = name, tracker, run
        place = re.sub(r"[^\w.-]", "_", name)
        self._place = run.folder / "trackers" / f"{place}.json"
        self.shown = _read(self._place)
        self._log: BinaryIO | None = None  # open as soon as the tracker has started
        self._step, self._samples = 0, (0, 0)
        self._wake, self._closing = threading.Event(), threading.Event()
        self._how, self._failing = "", False
        self._files: Sequence[Path] = ()
        self._thread: threading.Thread | None = None

    # ---- the run's side --------------------------------------------------------------------------

    def rewind(self, kept: int, cut: bytes) -> None:
        """Note that a resume leaves `kept` records and cuts the lines `cut` off the log."""
        over = self.shown.records - kept
        if over > 0:
            for line in read_lines(cut)[:over]:
                with contextlib.suppress(ValueError, KeyError, TypeError):  # a damaged line
                    self.shown.ahead.append(_key(json.loads(line)))
            self.shown.records = kept
            self._save()

    def wake(self) -> None:
        """Say that the log has grown; the first time starts the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, daemon=True, name=self.name)
            self._thread.start()
        self._wake.set()

    def close(self, how: str, files: Sequence[Path] = ()) -> None:
        """Let the thread show the rest, attach files and end; `join` waits for it."""
        self._how, self._files = how, files
        self._closing.set()
        self._wake.set()

    def join(self, until: float) -> None:
        """Wait for the end until a time of the monotonic clock; say what is not shown."""
        if self._thread is None:
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        lines = (self.run.folder / "metrics.jsonl").read_bytes().count(b"\n")
        lacking = lines - self.shown.records
        if self._thread.is_alive():
            log.warning("%s does not end in time, and the run does not wait for it", self.name)
            self.shown.failures += 1
            self.shown.error = "it did not end in time"
            with contextlib.suppress(OSError):
                self._save()
        elif lacking > 0 or self._failing:
            log.warning("%s lacks %d records of this run: %s", self.name, lacking, self.shown.error)
        elif self.shown.failures:
            log.info("%s failed %d times and has all records", self.name, self.shown.failures)

    # ---- the thread's side -----------------------------------------------------------------------

    def _follow(self) -> None:
        delay = FIRST_WAIT
        while True:
            self._wake.wait()
            self._wake.clear()
            how = self._how
            caught_up = self._try(self._catch_up)
            if how:
                if caught_up:
                    for path in self._files:
                        self._try(self.tracker.attach, path)
                if self._log is not None:
                    self._try(self.tracker.finish, how)
                    self._log.close()
                return
            if caught_up:
                delay = FIRST_WAIT
            else:
                self._closing.wait(delay)
                delay = min(2 * delay, LONGEST_WAIT)
                self._wake.set()

    def _try(self, call: Callable[..., object], *arguments: object) -> bool:
        """Call the tracker; count and note an error, and say the first one."""
        try:
            call(*arguments)
        except BaseException as error:  # whatever another package raises, SystemExit too
            first = next(iter(str(error).splitlines()), "")[:300]
            self.shown.failures += 1
            self.shown.error = f"{type(error).__name__}: {first}"
            if not self._failing:
                log.warning(
                    "%s fails (%s); the run goes on, and it is tried again", self.name,
                    self.shown.error,
                )  # fmt: skip
            self._failing = True
            with contextlib.suppress(OSError):  # a full disk; the run itself will say so
                self._save()
            return False
        self._failing = False
        return True

    def _catch_up(self) -> None:
        """Show all records that are in the log and not shown, then new samples."""
        if self._log is None:
            self._log = self._start()
        while records := _whole_records(self._log):
            before = self.shown.records
            self.shown.records += len(records)
            self._save()  # before they are shown: after a kill none is shown twice
            for n, (place, record) in enumerate(records):
                try:
                    self._show(record)
                except BaseException:
                    self._log.seek(place)
                    self.shown.records = before + n
                    raise
        self._show_samples()

    def _start(self) -> BinaryIO:
        self.shown.id = self.tracker.start(dataclasses.replace(self.run, id=self.shown.id))
        if self.tracker.remade:
            self.shown.records, self.shown.ahead, self.shown.tables = 0, [], []
        self._save()
        file = open(self.run.folder / "metrics.jsonl", "rb")  # noqa: SIM115  open until the end
        for _ in range(self.shown.records):
            file.readline()
        return file

    def _show(self, record: dict[str, Any]) -> None:
        self._step = record["step"]
        if _key(record) in self.shown.ahead:
            return
        times = {name: x for name, x in record["wall"].items() if name != "time"}
        values = {
            f"{record['phase']}/{name}": x
            for name, x in (record["values"] | times).items()
            if x is not None
        }
        self.tracker.log(record["step"], values, record["wall"]["time"])

    def _show_samples(self) -> None:
        """Show the held-out responses of evaluations that are not shown yet, a table for each."""
        path = self.run.folder / "samples.jsonl"
        if not path.is_file():
            return
        status = path.stat()
        version = (status.st_mtime_ns, status.st_size)
        if version == self._samples:
            return
        tables: dict[int, list[dict]] = {}
        for row in read_records(path):
            tables.setdefault(row["iteration"], []).append(row)
        for iteration, rows in tables.items():
            if iteration not in self.shown.tables:
                self.tracker.table(f"samples/iteration_{iteration}", self._step, rows)
                self.shown.tables.append(iteration)
                self._save()
        self._samples = version

    def _save(self) -> None:
        write_json(self._place, dataclasses.asdict(self.shown))


def _whole_records(log: BinaryIO) -> list[tuple[int, dict]]:
    """Read a batch of records that are whole, with their places in the file."""
    found: list[tuple[int, dict]] = []
    while len(found) < BATCH:
        place = log.tell()
        line = log.readline()
        if not line.endswith(b"\n"):
            log.seek(place)
            break
        found.append((place, json.loads(line)))
    return found


def _key(record: dict) -> list:
    return [record["phase"], record["iteration"], record["step"]]


def _read(path: Path) -> Shown:
    """Return what a tracker had shown; a file that is damaged does not stop the run."""
    if not path.is_file():
        return Shown()
    try:
        return Shown(**read_json(path))
    except (UserError, TypeError) as error:
        log.warning("%s is damaged (%s); the run begins anew in that tracker", path, error)
        return Shown()
