"""Keep the config and the readable records of a run folder."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ssppo_jax import files
from ssppo_jax.config import flatten
from ssppo_jax.distributed import hosts
from ssppo_jax.errors import ConfigError, DataError

FREE_TO_CHANGE = ("checkpoint.", "distributed.")  # keys that may differ when a run is continued

EXPORTS = ("policy", "adapters")  # folders that a run replaces at its end


def claim(workdir: Path, config: ConfigDict, version: str) -> None:
    """Write config.json into a new folder, or check that the folder's run has this very config.

    Call it on process 0 only.

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
    if path.is_file():
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
    if not path.is_file():
        return []
    record = files.read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise DataError(f"{path}: not the record of a run; put the run's own back, or remove it")
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


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value atomically. Process 0 writes; the others have nothing to add."""
    if hosts.is_first():
        files.write_json(path, value)


def append_records(path: Path, rows: list[dict], iteration: int) -> None:
    """Add an iteration's records to a JSONL file. Process 0 writes.

    Records of this iteration or a later one, which a killed attempt left, are replaced.
    """
    if not hosts.is_first():
        return
    kept = []
    for line in files.read_lines(path.read_bytes()) if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:  # torn by a kill: its content is being written again
            continue
        if record["iteration"] < iteration:
            kept.append(line.decode())
    files.write_lines(path, kept + [json.dumps(row, ensure_ascii=False) for row in rows])
