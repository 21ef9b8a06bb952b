"""Checkpoints that can be trusted after a kill, a full disk or a flipped bit.

One checkpoint is one folder, written under a temporary name and renamed when it is complete:

    step_00000012/      (step_00000012.1 when step 12 is saved again: nothing is overwritten)
      arrays/           Orbax (OCDBT), one entry per leaf, named by its path in the tree
      meta.json         step, shape and dtype of every leaf, and the caller's JSON
      manifest.sha256   SHA-256 of every file above, and of itself; read by `sha256sum -c`

The manifest is written last (temporary file, fsync, rename), because Orbax restores flipped bits
without a word. A save can go on in the background while the caller trains: the arrays are copied
to the host first, and the rest is a thread's work. The folder must be on a file system that every
process can see; `runs/mirror.py` keeps a copy in an object store."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ssppo_jax.distributed import hosts
from ssppo_jax.distributed.mesh import path_name
from ssppo_jax.errors import (
    ConfigError,
    GateError,
    Interrupted,
    LostProcess,
    UserError,
    WriteError,
    listed,
)
from ssppo_jax.files import file_digest, sync, write_atomically, writing
from ssppo_jax.types import PyTree

log = logging.getLogger(__name__)

MANIFEST = "manifest.sha256"


class Saved(NamedTuple):
    """One finished checkpoint folder; the same step saved again has a higher `generation`."""

    step: int
    generation: int
    path: Path


class Checkpoints:
    """The checkpoints of one run, oldest deleted first, at least `keep` valid ones on disk at any
    time.

    Every method is collective: with several processes, all call it with the same arguments.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2):
        if keep < 2:
            raise ConfigError(
                f"checkpoint keep={keep}: keep at least 2, so that one damaged checkpoint is not"
                " the end"
            )
        self.folder = Path(folder).absolute()  # Orbax refuses relative paths
        self.keep = keep
        self.on_saved: Callable[[], object] = lambda: None  # process 0 calls it after each save
        self.protected: set[int] = set()  # steps that are kept beside the newest `keep`
        self.damaged: dict[str, str] = {}  # folder name -> reason, as the last look found them
        self._trusted: Path | None = None  # verified by `latest`: `restore` need not read it again
        handler = ocp.PyTreeCheckpointHandler(use_compression=False)  # floats do not compress
        self._orbax = ocp.AsyncCheckpointer(handler)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None  # the save that goes on in the background

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        """Wait for the pending save; if an error is on its way already, only warn of another."""
        if kind is None or issubclass(kind, Interrupted):
            self.wait()
        elif self._pending is not None and not issubclass(kind, LostProcess):
            error = self._pending.exception()  # no meeting: the other processes may be elsewhere
            if error is not None:
                log.warning("%s", error)

    def save(
        self, step: int, arrays: PyTree, meta: dict, *, finite: bool, background: bool = False
    ) -> None:
        """Write one checkpoint, verify it, and only then delete the oldest.

        With `background`, return as soon as the arrays are copied to the host: they may be donated
        then. The next `save`, `wait` or the end of the `with` block waits for the rest and raises
        its error.

        Args:
            step: grows from save to save (equal is allowed: the same optimizer step at a later
              phase).
            arrays: any tree of `jax.Array`; typed PRNG keys go in as `jax.random.key_data(key)`.
            meta: everything else a resume needs; must survive JSON unchanged.
            finite: whether loss and gradients were finite on the way to this state.
            background: whether to return before the checkpoint is complete.

        Raises:
            GateError: the state is not finite; nothing is written.
            UserError: a newer checkpoint is there.
            WriteError: writing failed (disk full). Older checkpoints are untouched.
            TypeError: a leaf is not a numeric `jax.Array`, or `meta` is not JSON.
        """
        if not finite:
            raise GateError(
                f"step {step}: the training state is not finite, so it is not saved; look at the"
                " metrics log"
            )
        flat = _flatten(arrays)
        for name, leaf in flat.items():
            if not isinstance(leaf, jax.Array) or jax.dtypes.issubdtype(
                leaf.dtype, jax.dtypes.prng_key
            ):
                kind = f"{type(leaf).__name__} ({getattr(leaf, 'dtype', 'no dtype')})"
                raise TypeError(
                    f"checkpoint leaf {name} is a {kind}: save a numeric jax.Array (key_data of a"
                    " key)"
                )
        text = _describe(step, flat, meta)
        self.wait()
        generation = hosts.on_first(lambda: self._next_generation(step))
        temporary = self.folder / f"tmp_{step:08d}"
        quiet = contextlib.ExitStack()
        quiet.enter_context(_quiet())
        try:
            self._orbax.save(temporary / "arrays", args=ocp.args.PyTreeSave(flat))
        except Exception as error:
            self._give_up(step, temporary, error)
        self._pending = self._thread.submit(self._complete, step, generation, text, quiet)
        if not background:
            self.wait()

    @property
    def pending(self) -> bool:
        """Return whether a save is going on in the background."""
        return self._pending is not None and not self._pending.done()

    def wait(self) -> None:
        """Return when no save is pending.

        Raises:
            UserError: the save that was pending is not on disk; as in `save`.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            every = range(jax.process_count())
            hosts.share(every, lambda _: pending.result(), "finishing a checkpoint")

    def latest(self, validate: bool = True) -> int | None:
        """Return the newest step whose manifest verifies; None if no save has ever finished here.

        Damaged checkpoints are skipped, warned about and listed in `self.damaged`.

        Raises:
            UserError: there are checkpoints and every one is damaged. A run never silently starts
              from scratch.
        """
        return hosts.on_first(lambda: self._newest(validate))

    def restore(self, step: int, like: PyTree) -> tuple[PyTree, dict]:
        """Restore the arrays of `step` into the shardings of `like`, and the meta given to `save`.

        The mesh may differ from the one saved with.

        Args:
            step: as `latest` said it.
            like: tree of `jax.ShapeDtypeStruct`, each with a sharding. Optimizer scalars need one
                too: without it they come back on a single device and the next step fails to
                compile.

        Raises:
            ConfigError: tree, shape or dtype differ from the saved ones; every leaf is named.
            UserError: there is no such step, or it is damaged.
            ValueError: a leaf of `like` has no sharding.
        """
        generation = hosts.on_first(lambda: self._valid_generation(step))
        path = self.folder / _name(step, generation)
        record = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        wanted = _flatten(like)
        _check_fit(path, record["leaves"], wanted)
        arguments = {
            name: ocp.ArrayRestoreArgs(
                sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
            )
            for name, leaf in wanted.items()
        }
        found = self._orbax.restore(
            path / "arrays", args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments)
        )
        tree = jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in wanted])
        return tree, record["meta"]

    def clear(self) -> None:
        """Remove what an interrupted save or deletion left. Call it on process 0 only."""
        for leftover in self.folder.glob("tmp_*"):
            log.info("removing %s, left by an interrupted save", leftover)
            shutil.rmtree(leftover)

    def metas(self) -> list[dict]:
        """Return the meta of every checkpoint that can be read, newest first. Call it on process 0
        only.
        """
        found = []
        for saved in self._saved():
            with contextlib.suppress(OSError, ValueError, KeyError):
                found.append(json.loads((saved.path / "meta.json").read_bytes())["meta"])
        return found

    # ---- in the background -------------------------------------------------------------------

    def _complete(self, step: int, generation: int, text: str, quiet: contextlib.ExitStack) -> None:
        """Wait until every process has written its arrays; process 0 makes them a checkpoint.

        The processes meet by Orbax's barriers, which no device takes part in.
        """
        temporary = self.folder / f"tmp_{step:08d}"
        try:
            with quiet:
                self._orbax.wait_until_finished()
            if hosts.is_first():
                self._publish(temporary, text, _name(step, generation))
        except Exception as error:
            self._give_up(step, temporary, error)
        if hosts.is_first():
            self._prune(step, generation)
            self.on_saved()

    def _give_up(self, step: int, temporary: Path, error: Exception) -> NoReturn:
        """Remove what a failed save wrote, and say what failed."""
        for _ in range(4 if hosts.is_first() else 0):  # writes under way may bring it back
            shutil.rmtree(temporary, ignore_errors=True)
            time.sleep(0.1)
        if lost := hosts.lost(error):
            raise lost from error
        raise WriteError(
            f"the checkpoint of step {step} could not be written to {self.folder}: {error}\n"
            "Older checkpoints are untouched. Free some space and run the same command again."
        ) from error

    # What follows runs on process 0 only; what it returns, or raises, reaches the others.

    def _saved(self) -> list[Saved]:
        """List finished checkpoints, newest first."""
        saved = []
        for path in self.folder.glob("step_*"):
            if match := re.fullmatch(r"step_(\d{8,})(?:\.(\d+))?", path.name):
                saved.append(Saved(int(match[1]), int(match[2] or 0), path))
        return sorted(saved, reverse=True)

    def _next_generation(self, step: int) -> int:
        """Clear what killed saves left, refuse to go back in time, and number this save."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.clear()
        saved = self._saved()
        newer = [s for s in saved if s.step > step and find_damage(s.path) is None]
        if newer:
            raise UserError(
                f"{self.folder} already holds step {newer[0].step}, newer than step {step}: "
                "resume from it, or give the run another folder"
            )
        return max((s.generation + 1 for s in saved if s.step == step), default=0)

    def _publish(self, temporary: Path, text: str, name: str) -> None:
        """Complete the temporary folder and give it its name: the one moment it becomes a
        checkpoint."""
        (temporary / "meta.json").write_text(text, encoding="utf-8")
        write_manifest(temporary)
        os.replace(temporary, self.folder / name)
        sync(self.folder)

    def _prune(self, step: int, generation: int) -> None:
        """Verify the new checkpoint, then delete all but the newest `keep` valid ones."""
        fresh = self.folder / _name(step, generation)
        reason = find_damage(fresh)
        if reason is not None:
            raise UserError(
                f"{fresh} was written but does not verify ({reason}): check the disk. Older ones"
                " are kept."
            )
        valid, extra = 1, []
        for other in self._saved():
            if other.path == fresh or other.step in self.protected:
                continue
            if valid < self.keep and self._is_valid(other.path):
                valid += 1
            else:
                extra.append(other.path)
        if valid < self.keep:
            return  # the extra ones are all damaged: leave them to be looked at
        for path in extra:
            _remove(path)

    def _newest(self, validate: bool) -> int | None:
        self.damaged = {}
        for saved in self._saved():
            if not validate and (saved.path / MANIFEST).exists():
                return saved.step
            if self._is_valid(saved.path):
                self._trusted = saved.path
                return saved.step
        if self.damaged:
            found = "\n".join(f"  {name}: {reason}" for name, reason in self.damaged.items())
            raise UserError(
                f"every checkpoint in {self.folder} is damaged:\n{found}\n"
                "Restore one from a backup, or give the run another folder to start from scratch."
            )
        if any(self.folder.glob("tmp_*")):
            log.warning(
                "%s holds only a save that was interrupted before it finished: nothing to resume",
                self.folder,
            )
        return None

    def _valid_generation(self, step: int) -> int:
        saved = self._saved()
        for candidate in (s for s in saved if s.step == step):
            if candidate.path == self._trusted or self._is_valid(candidate.path):
                return candidate.generation
        there = ", ".join(str(s.step) for s in saved) or "none"
        raise UserError(
            f"{self.folder} has no valid checkpoint of step {step}; steps there: {there}"
        )

    def _is_valid(self, path: Path) -> bool:
        reason = find_damage(path)
        if reason is not None:
            self.damaged[path.name] = reason
            log.warning("checkpoint %s is damaged and will not be used: %s", path, reason)
        return reason is None


def read_arrays(folder: Path, prefix: str) -> dict[str, np.ndarray]:
    """Read the leaves under `prefix` of one verified checkpoint folder to the host, keyed by the
    rest.

    Raises:
        UserError: the folder is damaged, or holds no such leaf.
    """
    damage = find_damage(folder)
    if damage:
        raise UserError(f"{folder} is damaged: {damage}; give another checkpoint")
    leaves = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["leaves"]
    wanted = {name: leaf for name, leaf in leaves.items() if name.startswith(prefix)}
    if not wanted:
        raise UserError(
            f"{folder} holds nothing under {prefix!r}, only {', '.join(list(leaves)[:5])} ..."
        )
    item = {
        name: jax.ShapeDtypeStruct(shape, jnp.dtype(kind)) for name, (kind, shape) in wanted.items()
    }
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in wanted}
    arguments = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True)
    found = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
        Path(folder).absolute() / "arrays", args=arguments
    )
    return {name.removeprefix(prefix): found[name] for name in wanted}


def write_manifest(folder: Path) -> None:
    """Flush every file of `folder` to disk and list their SHA-256 in `manifest.sha256`, whose last
    line is its own."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    body = "".join(
        f"{digest}  {p.relative_to(folder)}\n"
        for p, digest in zip(files, _digests(files), strict=True)
    )
    for inner in [p for p in folder.rglob("*") if p.is_dir()]:
        sync(inner)
    write_atomically(folder / MANIFEST, lambda file: file.write(_seal(body.encode())))


def find_damage(folder: Path) -> str | None:
    """Return why this checkpoint must not be used, or None, after hashing every listed file."""
    try:
        raw = (folder / MANIFEST).read_bytes()
        body = raw[: raw.rfind(b"# ")]
        if not body or raw != _seal(body):
            return f"{MANIFEST} changed after it was written"
        names = [line.split("  ", 1)[::-1] for line in body.decode().splitlines()]
        found = _digests([folder / name for name, _ in names])
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    changed = [name for (name, digest), now in zip(names, found, strict=True) if digest != now]
    return f"changed after it was written: {', '.join(changed)}" if changed else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax's threads from printing tracebacks of the error that the save itself raises.

    What the main thread has to say is printed: it trains meanwhile. After an error the threads stay
    quiet, because writes that are still under way fail like the first.
    """
    hooks = sys.excepthook, sys.unraisablehook
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", "concurrent.futures")]
    levels = [logger.level for logger in loggers]
    sys.excepthook = _of_main_thread(sys.excepthook)
    sys.unraisablehook = _of_main_thread(sys.unraisablehook)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    yield
    sys.excepthook, sys.unraisablehook = hooks
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def _of_main_thread(hook: Callable[..., object]) -> Callable[..., None]:
    """Return a hook that prints the errors of the main thread alone."""

    def print_own(*args: object) -> None:
        if threading.current_thread() is threading.main_thread():
            hook(*args)

    return print_own


def _seal(body: bytes) -> bytes:
    return body + b"# " + hashlib.sha256(body).hexdigest().encode() + b"\n"


def _digests(files: list[Path]) -> list[str]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the GIL
        return list(pool.map(_digest, files))


def _digest(path: Path) -> str:
    sync(path)  # a hash of what is only in memory would promise too much; free if it is on disk
    return file_digest(path)


def _remove(path: Path) -> None:
    # Renamed first: a kill in the middle of deleting must not leave something that looks like a
    # damaged checkpoint.
    doomed = path.with_name(f"tmp_deleting_{path.name}")
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def _name(step: int, generation: int) -> str:
    return f"step_{step:08d}" + (f".{generation}" if generation else "")


def _flatten(tree: PyTree) -> dict:
    """Return leaves by path ("params/embed"): Orbax sees no NamedTuples, None or empty states."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    flat = {path_name(path): leaf for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError(
            "two leaves of the tree have the same path: rename a key that contains '/'"
        )
    return flat


def _kinds(flat: dict) -> dict[str, list]:
    """Return the dtype and shape of every leaf, as JSON."""
    return {name: [leaf.dtype.name, list(leaf.shape)] for name, leaf in flat.items()}


def _describe(step: int, flat: dict, meta: dict) -> str:
    record = {"step": step, "leaves": _kinds(flat), "meta": meta}
    try:
        text = json.dumps(record, allow_nan=False)
    except ValueError as error:
        raise TypeError(f"checkpoint meta is not JSON: {error}") from error
    if json.loads(text)["meta"] != meta:
        raise TypeError(
            "checkpoint meta does not survive JSON: use str keys and lists, not int keys and tuples"
        )
    return text


def _check_fit(path: Path, saved: dict, wanted: dict) -> None:
    unplaced = [name for name, leaf in wanted.items() if leaf.sharding is None]
    if unplaced:
        raise ValueError(
            "restore needs a sharding for every leaf, scalars too; none given for"
            f" {', '.join(unplaced)}"
        )
    here = _kinds(wanted)
    problems = [
        f"{name}: saved, but this run has no such leaf" for name in saved if name not in here
    ]
    problems += [
        f"{name}: this run needs it, but it was not saved" for name in here if name not in saved
    ]
    problems += [
        "{}: saved as {}{}, this run has {}{}".format(name, *saved[name], *here[name])
        for name in here
        if name in saved and saved[name] != here[name]
    ]
    if problems:
        shown = "\n  ".join(listed(problems))
        raise ConfigError(
            f"{path} does not fit this configuration ({len(problems)} leaves differ):\n  {shown}\n"
            "Resume with the model and optimizer it was saved with, or give the run another folder."
        )
