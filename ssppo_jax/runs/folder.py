"""Keep the config and the readable records of a run folder."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ssppo_jax import files
from ssppo_jax.config import flatten
from ssppo_jax.data import EncodedPrompt, History, question
from ssppo_jax.distributed import hosts
from ssppo_jax.errors import ConfigError, DataError

log = logging.getLogger(__name__)

# What a run leaves as soon as it has computed something.
COMPUTED = (
    "baseline.json", "samples.jsonl", "metrics.jsonl", "verdicts*.jsonl", "rollouts/*.npz",
    "checkpoints/step_*", "policy", "adapters", "result.json",
)  # fmt: skip
FREE_TO_CHANGE = ("checkpoint.", "distributed.")  # keys that may differ when a run is continued

EXPORTS = ("policy", "adapters")  # folders that a run replaces at its end


def claim(workdir: Path, config: ConfigDict, version: str) -> None:
    """Write config.json into a new folder, or check that the folder's run has this very config.

    A start that failed before it computed anything left no run: its config.json is replaced. Call
    it on process 0 only.

    Raises:
      ConfigError: the folder holds a run with another config, every differing key is listed; or
        models that no run of this folder wrote.
    """
    found = differences(workdir, config)
    if found:
        raise ConfigError(
            f"{workdir} holds a run with another configuration:\n  "
            + "\n  ".join(found)
            + "\nContinue it with its own configuration, or give --workdir a new folder"
        )
    path = workdir / "config.json"
    if path.is_file() and not _differing(path, config):
        return
    taken = [name for name in EXPORTS if _holds_something(workdir / name)]
    if taken:
        raise ConfigError(
            f"{workdir} has no config.json, but holds {' and '.join(taken)}, where this run would"
            " export its policy; move that away, or give --workdir a new folder"
        )
    device = jax.devices()[0]
    write_json(
        path,
        {
            "config": flatten(config),
            "command": " ".join(sys.argv),
            "version": version,
            "jax": jax.__version__,
            "devices": f"{jax.device_count()} x {device.device_kind}",
        },
    )


def _holds_something(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def differences(workdir: Path, config: ConfigDict) -> list[str]:
    """List the keys in which a folder's run differs from a config, except those that may change."""
    path = workdir / "config.json"
    computed = any(
        found.is_dir() or found.stat().st_size
        for pattern in COMPUTED
        for found in workdir.glob(pattern)
    )
    found = _differing(path, config) if path.is_file() else []
    return found if computed else []


def _differing(path: Path, config: ConfigDict) -> list[str]:
    """List the keys in which a run's config.json differs from a config.

    Raises:
      ConfigError: the file is another program's.
    """
    record = files.read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise ConfigError(
            f"{path} is no config of a run, but of another program (of a model?); give --workdir a"
            " folder of its own"
        )
    old, new = record["config"], json.loads(json.dumps(flatten(config)))
    return [
        f"{key}: the run has {old.get(key)!r}, given {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if not key.startswith(FREE_TO_CHANGE) and old.get(key) != new.get(key)
    ]


def digest(config: ConfigDict) -> str:
    """Return the SHA-256 of the config without the keys that may change."""
    flat = {k: v for k, v in flatten(config).items() if not k.startswith(FREE_TO_CHANGE)}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def claim_split(
    workdir: Path, train: Iterable[EncodedPrompt], heldout: Iterable[EncodedPrompt], identity: str
) -> None:
    """Write split.json into a new folder, or check that the folder's run has this very split.

    It says by digests what is trained on and held out, for later evaluations (`history_of`).

    Args:
      workdir: the run's folder.
      train: prompts that are trained on.
      heldout: prompts that are not.
      identity: their fingerprint, with their token ids.

    Raises:
      ConfigError: the folder's run began with other prompts, or with other ids of them.
    """
    path = workdir / "split.json"
    if path.is_file() and files.read_json(path)["fingerprint"] != identity:
        raise ConfigError(
            f"{workdir}: the prompts or their token ids changed since the run began (the data, the"
            " tokenizer, or its chat template); put them back, or give --workdir a new folder"
        )
    if not path.is_file():
        split = {
            "fingerprint": identity,
            "heldout": {e.prompt.id: question(e.prompt) for e in heldout},
            "trained": sorted({question(e.prompt) for e in train}),
        }
        write_json(path, split)


def history_of(*sources: str) -> History:
    """Return what the runs that made these models were trained on, and what they held out.

    A model that is no run's has no history. The model that a run began with counts too.

    Args:
      sources: as `model.source`; RUN/policy and RUN/checkpoints/step_... belong to a run.
    """
    trained: set[str] = set()
    heldout: dict[str, str] = {}
    waiting, known = list(sources), set[Path]()
    while waiting:
        run = _run_of(waiting.pop(0))
        if run is None or run in known:
            continue
        known.add(run)
        waiting.append(files.read_json(run / "config.json")["config"]["model.source"])
        if not (run / "split.json").is_file():
            log.warning("%s does not say what it was trained on; the split is the config's", run)
            continue
        split = files.read_json(run / "split.json")
        trained |= set(split["trained"])
        heldout = split["heldout"] | heldout
    return History(frozenset(trained), heldout)


def _run_of(source: str) -> Path | None:
    """Return the run folder that a model's folder stands in."""
    folder = files.expanded(source).resolve()
    if not folder.is_dir():
        return None
    for place in (folder, *folder.parents[:2]):
        settings = place / "config.json"
        if settings.is_file() and "config" in files.read_json(settings):
            return place
    return None


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value atomically. Process 0 writes; the others have nothing to add."""
    if hosts.is_first():
        files.write_json(path, value)


def append_records(path: Path, rows: list[dict], iteration: int) -> None:
    """Add an iteration's records to a JSONL file. Process 0 writes.

    Records of this iteration or a later one, which a killed attempt left, are replaced.

    Raises:
      DataError: the file was edited and a line holds no record of an iteration.
    """
    if not hosts.is_first():
        return
    kept = []
    for number, record in enumerate(files.read_records(path) if path.is_file() else (), 1):
        if not isinstance(record.get("iteration"), int):
            raise DataError(f"{path}:{number}: a record without its iteration; remove the line")
        if record["iteration"] < iteration:
            kept.append(record)
    files.write_records(path, kept + rows)
