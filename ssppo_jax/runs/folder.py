"""Keep the config and the readable records of a run folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ssppo_jax import files
from ssppo_jax.config import expanded, flatten, user_files
from ssppo_jax.data import EncodedPrompt, History, question
from ssppo_jax.distributed import hosts
from ssppo_jax.distributed.stop import RunLock, holder_of
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.files import run_config

log = logging.getLogger(__name__)

# What a run leaves as soon as it has computed something.
COMPUTED = (
    "baseline.json", "samples.jsonl", "metrics.jsonl", "verdicts*.jsonl", "rollouts/*.npz",
    "checkpoints/step_*", "policy", "adapters", "policy_best", "adapters_best", "result.json",
)  # fmt: skip
# Keys that may differ when a run is continued: they change nothing that is trained.
FREE_TO_CHANGE = (
    "checkpoint.", "distributed.", "eval.every", "eval.num_samples", "train.term_norms",
    "export.", "tracking.",
)  # fmt: skip
LENGTH = "train.iterations"  # may be raised when a run is continued

# Folders that a run replaces at its end.
EXPORTS = ("policy", "adapters", "policy_best", "adapters_best")


def claim(workdir: Path, config: ConfigDict, version: str) -> None:
    """Write config.json into a new folder, or check that the folder's run has this very config.

    A start that failed before it computed anything left no run: its config.json is replaced. Of a
    run that continues, the keys and user's files that changed are logged and recorded. A finished
    run with more iterations loses its result, which is kept under another name. Call it on process
    0 only.

    Raises:
      ConfigError: the folder holds a run with another config, every differing key is listed; or
        models that no run of this folder wrote.
    """
    found = differences(workdir, config)
    if found:
        raise ConfigError(
            f"{workdir} holds a run with another configuration:\n  "
            + "\n  ".join(found)
            + _other_release(workdir, version)
            + "\nContinue it with its own configuration, or give --workdir a new folder"
        )
    path = workdir / "config.json"
    if path.is_file() and computed(workdir):
        _continue(workdir, config)
        return
    places = [workdir / name for name in EXPORTS]
    taken = [path.name for path in places if path.is_file() or any(path.glob("*"))]
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
            "files": user_files(config),
            "command": shlex.join(sys.argv),
            "version": version,
            "jax": jax.__version__,
            "devices": f"{jax.device_count()} x {device.device_kind}",
        },
    )


def _other_release(workdir: Path, version: str) -> str:
    """Say which release began a run, if it was another: it may lack keys that this one has."""
    began = files.read_json(workdir / "config.json").get("version")
    if began in (None, version):
        return ""
    return (
        f"\nRelease {began} of ssppo_jax began it, and this is {version}. None stands for a key"
        f" that a release lacks. Release {began} can continue it"
    )


def _continue(workdir: Path, config: ConfigDict) -> None:
    """Say and record what differs from the run so far; make a finished run longer.

    Raises:
      ConfigError: a finished run that kept no checkpoint, or whose next rollout is a lagged one, is
        to be made longer.
    """
    path, result = workdir / "config.json", workdir / "result.json"
    record = files.read_json(path)
    length = record["config"][LENGTH]
    changed = _changed(record["config"], config)
    before, now = record.get("files", {}), user_files(config)
    edited = [name for name in now if before.get(name) != now[name]]
    if not (changed or edited) or (result.is_file() and config.train.iterations <= length):
        return
    if result.is_file():
        why, lag = "", config.train.rollout_lag
        if not any(workdir.glob("checkpoints/step_*")):
            why = "kept no checkpoint (checkpoint.final=false)"
        elif lag:
            why = f"with train.rollout_lag={lag} its next rollout is one of a policy that is gone"
        if why:
            raise ConfigError(
                f"{workdir} is finished and {why}, so {LENGTH} cannot be raised; give --workdir a"
                " new folder"
            )
        result.rename(workdir / f"result_{length}.json")
    for key, (old, new) in changed.items():
        log.info("changed: %s=%s, was %s", key, new, old)
    for name in edited:
        log.warning("%s changed since the run began; what it judged or trained so far stands", name)
    changes = [{"key": key, "from": old, "to": new} for key, (old, new) in changed.items()]
    changes += [{"file": name, "from": before.get(name), "to": now[name]} for name in edited]
    record |= {
        "began": {LENGTH: length} | record.get("began", {}),
        "config": flatten(config),
        "files": now,
    }
    files.write_json(path, record | {"changes": record.get("changes", []) + changes})


def opened(
    workdir: Path, config: ConfigDict, version: str, stack: contextlib.ExitStack
) -> dict | None:
    """Lock the run's folder and claim it; return the result if the run is finished.

    A finished run asks nothing of the disk, which may be full or read-only by now.
    """
    finished = workdir / "result.json"
    if not finished.is_file() or is_longer(workdir, config):
        stack.enter_context(RunLock(workdir))
    claim(workdir, config, version)
    return files.read_json(finished) if finished.is_file() else None


def is_longer(workdir: Path, config: ConfigDict) -> bool:
    """Return whether a config has more iterations than the folder's run."""
    wanted = config.train.iterations
    return run_config(workdir).get(LENGTH, wanted) < wanted


def portions_of(workdir: Path, config: ConfigDict) -> int:
    """Return the parts that a run's data is cut into: the iterations that it began with."""
    path = workdir / "config.json"
    began = files.read_json(path).get("began", {}) if path.is_file() else {}
    return began.get(LENGTH, config.train.iterations)


def differences(workdir: Path, config: ConfigDict) -> list[str]:
    """List the keys in which a folder's run differs from a config, except those that may change.

    Raises:
      ConfigError: the folder's config.json is another program's.
    """
    path = workdir / "config.json"
    if not path.is_file():
        return []
    record = files.read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise ConfigError(
            f"{path} is no config of a run, but of another program (of a model?); give --workdir a"
            " folder of its own"
        )
    if not computed(workdir):
        return []
    free, found = _free(flatten(config)), []
    for key, (old, new) in _changed(record["config"], config).items():
        longer = key == LENGTH and old is not None and new > old
        if not longer and not key.startswith(free):
            hint = f" (it may be raised above {old})" if key == LENGTH else ""
            found.append(f"{key}: the run has {old!r}, given {new!r}{hint}")
    return found


def _changed(old: dict[str, Any], config: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Return both values of every key that differs; None stands for a key that is not there."""
    new = json.loads(json.dumps(flatten(config)))  # a tuple is a list in the record
    pairs = {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())}
    return {key: (was, now) for key, (was, now) in pairs.items() if was != now}


def computed(workdir: Path) -> bool:
    """Return whether a start in this folder came so far as to compute something."""
    return any(
        found.is_dir() or found.stat().st_size
        for pattern in COMPUTED
        for found in workdir.glob(pattern)
    )


@contextlib.contextmanager
def no_trace_of_failure(workdir: Path) -> Iterator[None]:
    """Remove a folder that was not there before if the block fails before anything is computed."""
    missing = [p for p in (workdir, *workdir.parents) if not p.exists()]
    try:
        yield
    except Exception:
        if missing and hosts.is_first() and not computed(workdir) and not holder_of(workdir):
            shutil.rmtree(workdir, ignore_errors=True)
            for parent in missing[1:]:
                with contextlib.suppress(OSError):  # by now another run's
                    parent.rmdir()
        raise


def _free(flat: dict) -> tuple[str, ...]:
    """Return what may change: no evaluations where they choose what is trained."""
    selects = bool(flat.get("train.select_by"))
    return tuple(key for key in FREE_TO_CHANGE if not (selects and key.startswith("eval.")))


def digest(config: ConfigDict) -> str:
    """Return the SHA-256 of the config without the keys that may change."""
    whole = flatten(config)
    flat = {k: v for k, v in whole.items() if not k.startswith((*_free(whole), LENGTH))}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def claim_split(
    workdir: Path, train: Iterable[EncodedPrompt], heldout: Iterable[EncodedPrompt], identity: str
) -> None:
    """Write split.json into a new folder, or check that the folder's run has this very split.

    It says by digests what is trained on and held out, for later evaluations (`history_of`).
    `identity` is the prompts' fingerprint, with their token ids.

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
    waiting: list[tuple[str, Sequence[Path]]] = [(source, ()) for source in sources]
    known = set[Path]()
    while waiting:
        run = _run_of(*waiting.pop(0))
        if run is None or run in known:
            continue
        known.add(run)
        waiting.append((run_config(run)["model.source"], run.parents))
        if not (run / "split.json").is_file():
            log.warning("%s does not say what it was trained on; the split is the config's", run)
            continue
        split = files.read_json(run / "split.json")
        trained |= set(split["trained"])
        heldout = split["heldout"] | heldout
    return History(frozenset(trained), heldout)


def _run_of(source: str, above: Sequence[Path]) -> Path | None:
    """Return the run folder that a model's folder stands in.

    A relative path is sought here, then in the folders above the run that names it, because that
    run may have begun in one of them."""
    for base in (Path(), *above):
        folder = (base / expanded(source)).resolve()
        for place in (folder, *folder.parents[:2]) if folder.is_dir() else ():
            if "model.source" in run_config(place):
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
