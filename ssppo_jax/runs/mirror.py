"""Keep a run in an object store (s3://, gs://): it works in a local folder that is mirrored there.

Appending, renaming and locking are a disk's. So a run keeps its folder on the disk, and after each
checkpoint process 0 brings the store up to date. The order makes every moment of it a folder that a
run continues from, whatever is killed when:

1. logs, rollouts and all other files, each put whole;
2. the files of new checkpoints, and of each its manifest last;
3. what is gone here is deleted there, of a checkpoint its manifest first;
4. result.json, and a marker that says which folder was brought up to date.

A start on another machine finds no folder with the store's marker, and fetches the store's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import fsspec

from ssppo_jax.distributed import hosts
from ssppo_jax.distributed.stop import RunLock
from ssppo_jax.errors import ConfigError, UserError, WriteError
from ssppo_jax.files import default_cache, read_json, write_json, writing

log = logging.getLogger(__name__)

MARKER, OWNER = "mirror.json", "run.lock"
MANIFEST = "manifest.sha256"
# What a run does not continue from: locks, half-written files, and the mirror of the log.
LEFT_OUT = re.compile(r"(^|/)(tmp_|tensorboard/)|\.tmp($|[-/])|^run\.lock$|^mirror\.json$")
EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs"}


def is_address(workdir: str) -> bool:
    """Return whether a --workdir is in a store, not on a disk."""
    return "://" in workdir


class Mirror:
    """A run's folder on this machine, `folder`, and its place in a store.

    A context manager: entering fetches what is needed and takes the place over, leaving brings it
    up to date. With several processes all enter, and process 0 does the work.

    There is no lock that a dead run could leave behind. The run that was started last owns the
    place, and another one ends when it next writes there.

    Args:
        address: such as s3://bucket/run.

    Raises:
        ConfigError: no such store, a package is missing, or the processes are on several hosts.
        UserError: on entering, if a run of this machine is at work there.
    """

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        scheme = address.partition("://")[0]
        try:
            self.store, self.root = fsspec.core.url_to_fs(self.address)
        except (ImportError, ValueError) as error:
            extra = EXTRAS.get(scheme)
            hint = f"pip install 'ssppo_jax[{extra}]'" if extra else "give s3://, gs:// or a path"
            raise ConfigError(f"--workdir={address}: {error}; {hint}") from None
        name = re.sub(r"[^\w.=-]", "_", self.root.rpartition("/")[2], flags=re.ASCII)
        digest = hashlib.sha256(self.address.encode()).hexdigest()[:12]
        self.folder = default_cache() / "runs" / f"{name}-{digest}"
        self.token = uuid.uuid4().hex
        self._there: dict[str, tuple] = {}  # file -> size and time of what is in the store
        self._busy = threading.Lock()
        self._lock = RunLock(self.folder.with_name(self.folder.name + ".lock"))

    def __enter__(self) -> Mirror:
        names = hosts.exchange(socket.gethostname(), "comparing hosts")
        if len(set(names)) > 1:
            raise ConfigError(
                f"--workdir={self.address}: the processes are on {len(set(names))} hosts, whose"
                " folders nobody sees but they; give a folder that all of them share"
            )
        hosts.on_first(self._open)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if not hosts.is_first():
            return
        try:
            self._push()
        except UserError as error:
            if kind is None:
                raise
            log.error("error: %s", error)  # the run's own error is on its way
        finally:
            self._lock.__exit__()

    def push(self) -> None:
        """Bring the store up to date; process 0 calls it. What fails is tried again next time.

        Raises:
            UserError: another run owns the place by now.
        """
        try:
            self._push()
        except WriteError as error:
            log.warning("WARNING: %s; the run goes on and tries again after the next save", error)

    # ---- here ------------------------------------------------------------------------------------

    def _open(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._lock)
            with self._naming("read"):
                marker, owner, kept = self._read(MARKER), self._read(OWNER), self.folder / MARKER
                if marker and not (kept.is_file() and read_json(kept) == marker):
                    self._fetch()
                new = not marker and "token" not in owner  # a run of a disk has an owner without
                if new and (others := self._names() - {OWNER}):
                    raise ConfigError(
                        f"--workdir={self.address} holds files of no run, such as {min(others)},"
                        " which a run there would delete; give a place of its own"
                    )
                with writing(self.folder):
                    self.folder.mkdir(parents=True, exist_ok=True)
                record = {"token": self.token, "pid": os.getpid(), "host": socket.gethostname()}
                record["since"] = time.strftime("%Y-%m-%d %H:%M:%S")
                self._write(OWNER, record)
            stack.pop_all()  # from here on the lock is held until the end

    def _fetch(self) -> None:
        """Put the store's folder in the place of this machine's."""
        log.info("fetching %s into %s", self.address, self.folder)
        names = set(self._names())
        fresh = self.folder.with_name(self.folder.name + ".tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name in sorted(names - {OWNER}):
            checkpoint = _checkpoint(name)
            if checkpoint is None or f"{checkpoint}/{MANIFEST}" in names:
                with writing(fresh / name):
                    (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                self.store.get_file(f"{self.root}/{name}", str(fresh / name))
        shutil.rmtree(self.folder, ignore_errors=True)
        fresh.replace(self.folder)
        self._there = self._files()

    def _push(self) -> None:
        with self._busy, self._naming("written"):
            owner = self._read(OWNER)
            if owner.get("token") != self.token:
                raise UserError(
                    f"{self.address} was taken over by another run ({_said(owner)}); this one ends."
                    f" What it has computed is in {self.folder}"
                )
            here = self._files()
            gone = self._names() - here.keys() - {OWNER, MARKER}
            for name in sorted(here, key=_turn):
                if name == "result.json":
                    self._delete(gone)
                    gone = set()
                if self._there.get(name) != here[name]:
                    with contextlib.suppress(FileNotFoundError):  # deleted by the run meanwhile
                        self.store.put_file(str(self.folder / name), f"{self.root}/{name}")
                        self._there[name] = here[name]
            self._delete(gone)
            marker = {"run": self.token, "time": time.time()}
            self._write(MARKER, marker)
            write_json(self.folder / MARKER, marker)

    def _files(self) -> dict[str, tuple]:
        """Return the files of the folder with what tells a changed one apart."""
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and not LEFT_OUT.search(name):
                    said = path.stat()
                    found[name] = (said.st_size, said.st_mtime_ns, said.st_ino)
        return found

    # ---- there -----------------------------------------------------------------------------------

    def _names(self) -> set[str]:
        self.store.invalidate_cache()
        found = self.store.find(self.root)
        return {name.removeprefix(self.root.rstrip("/") + "/") for name in found}

    def _delete(self, names: set[str]) -> None:
        for name in sorted(names, key=lambda name: not name.endswith(MANIFEST)):
            with contextlib.suppress(FileNotFoundError):
                self.store.rm_file(f"{self.root}/{name}")
            self._there.pop(name, None)

    def _read(self, name: str) -> dict[str, Any]:
        """Return a record of the store; empty where there is none."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads(self.store.cat_file(f"{self.root}/{name}") or b"{}")
        return {}

    def _write(self, name: str, value: dict[str, Any]) -> None:
        self.store.pipe_file(f"{self.root}/{name}", json.dumps(value).encode())

    @contextlib.contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """Name the store in whatever error its client raises: each has its own."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise WriteError(
                f"{self.address} could not be {what}: {type(error).__name__}: {error}"
            ) from error


def _turn(name: str) -> tuple[int, str]:
    """Return when a file is put: result.json last, before it checkpoints, their manifests last."""
    if name == "result.json":
        return 3, name
    if _checkpoint(name) is None:
        return 0, name
    return 2 if name.endswith(MANIFEST) else 1, name


def _checkpoint(name: str) -> str | None:
    """Return the checkpoint that a file belongs to."""
    found = re.match(r"checkpoints/step_[^/]+", name)
    return found[0] if found else None


def _said(owner: dict[str, Any]) -> str:
    if not owner:
        return f"{OWNER} was deleted"
    return f"pid {owner['pid']} on host {owner['host']}, since {owner['since']}"
