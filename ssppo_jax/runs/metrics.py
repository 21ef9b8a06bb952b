"""Log what a run measures: one JSON line per record.

`metrics.jsonl` is the truth. It is append-only and is cut back to the checkpoint's byte offset on
resume, so a resumed log equals an uninterrupted one except for the `wall` field. Trackers
(`runs/trackers`) and the report are made from it.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ssppo_jax.distributed import hosts
from ssppo_jax.errors import Interrupted, UserError
from ssppo_jax.files import read_records, writing
from ssppo_jax.runs import trackers
from ssppo_jax.runs.trackers.follow import Follower
from ssppo_jax.runs.trackers.protocol import Tracker
from ssppo_jax.types import FINISH_EOS, Array, Max, Mean, Metrics, Min, Samples

log = logging.getLogger(__name__)

# Seconds that an end waits for the trackers; who stops a run wants it to stop.
PATIENCE = {"finished": 60.0, "interrupted": 10.0, "failed": 10.0}

Values = dict[str, float]


class NoLog:
    """Write nothing: the `MetricLog` of every process but the first."""

    def write(self, **_) -> None:
        pass

    def offset(self) -> int:
        return 0

    def truncate(self, offset: int) -> None:
        pass

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *_) -> None:
        pass


def open_log(config: ConfigDict, workdir: Path) -> MetricLog | NoLog:
    """Return the log of a run with its trackers, in process 0, and of the others one that writes
    nothing.

    Raises:
        ConfigError: in every process, if a tracker's package or login is missing.
    """
    made: dict[str, Tracker] = {}
    hosts.on_first(lambda: made.update(trackers.made(config)))
    if not hosts.is_first():
        return NoLog()
    return MetricLog(workdir, trackers.followers(made, config, workdir))


class MetricLog:
    """Append records to `folder/metrics.jsonl`, on process 0 only; trackers follow the file.

    A line is `{"step", "iteration", "phase", "values": {...}, "wall": {"time", ...}}`. Values that
    are NaN or infinite are null, because NaN is not JSON, and are listed in `"nonfinite": [names]`.
    """

    def __init__(self, folder: str | Path, followers: Sequence[Follower] = ()):
        self._followers = followers
        self.path = Path(folder) / "metrics.jsonl"
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  one write per line: a kill tears at most one

    def write(
        self, *, step: int, iteration: int, phase: str, values: Values, wall: Values | None = None
    ) -> None:
        """Append one record. `wall` is for times and rates, which differ between two equal runs."""
        record: dict[str, Any] = {"step": int(step), "iteration": int(iteration), "phase": phase}
        record["values"] = {name: _finite(value) for name, value in values.items()}
        record["wall"] = {"time": time.time()} | {
            name: _finite(value) for name, value in (wall or {}).items()
        }
        nonfinite = [name for name, value in record["values"].items() if value is None]
        if nonfinite:
            record["nonfinite"] = nonfinite
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        with writing(self.path):
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "a line could not be written whole")
        for follower in self._followers:
            follower.wake()

    def offset(self) -> int:
        """Return the bytes that are safely on disk: a checkpoint remembers them."""
        with writing(self.path):
            os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def truncate(self, offset: int) -> None:
        """Forget everything after a checkpoint's `offset` (0: everything), at the start of a
        resumed run.

        Raises:
            UserError: the file is shorter than that or was edited: log and checkpoint do not match.
        """
        content = self.path.read_bytes()
        if offset and content[offset - 1 : offset] != b"\n":
            raise UserError(
                f"{self.path} ({len(content)} bytes) does not belong to the checkpoint, which"
                f" expects a line to end at byte {offset}: put the run's own metrics.jsonl back, or"
                " give the run another folder"
            )
        for follower in self._followers:
            follower.rewind(content[:offset].count(b"\n"), content[offset:])
        self._file.truncate(offset)

    def close(self, how: str = "finished") -> None:
        """Close the file, and let the trackers end: `how` is finished, interrupted or failed."""
        self._file.close()
        if not self._followers:
            return
        files = [] if how != "finished" else self._report()
        for follower in self._followers:
            follower.close(how, files)
        until = time.monotonic() + PATIENCE[how]
        for follower in self._followers:
            follower.join(until)

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        failed = "interrupted" if kind in (Interrupted, KeyboardInterrupt) else "failed"
        self.close("finished" if kind is None else failed)

    def _report(self) -> list[Path]:
        """Draw the run's report for the trackers."""
        from ssppo_jax.runs.report.build import build_report  # matplotlib, slow to import

        try:
            return [build_report(self.path.parent)]
        except (OSError, UserError, ValueError) as error:  # the run is done all the same
            log.warning("the trackers get no report: %s", error)
            return []


def read_metrics(path: str | Path) -> Iterator[dict]:
    """Read the records of a metrics.jsonl, oldest first, under the names of this release.

    Raises:
        DataError: a line is not JSON; names file and line. A torn last line is left out.
    """
    return map(_with_present_names, read_records(Path(path)))


RENAMED = {  # names in the logs of release 0.1
    "reward/winner": "rewards/chosen",
    "reward/loser": "rewards/rejected",
    "reward/margin": "rewards/margins",
    "eur": "effective_update_ratio",
    "reward/zero_spread": "frac_reward_zero_std",
    "clip/low": "clip_ratio/low_mean",
    "clip/high": "clip_ratio/high_mean",
    "clip/fraction": "clip_ratio/region_mean",
}


def _with_present_names(record: dict) -> dict:
    """Return a record of an older log under the names of this release."""
    if "values" not in record:
        return record
    values = {RENAMED.get(name, name): value for name, value in record["values"].items()}
    if record.get("phase") == "train" and "reward/accuracy" in values:
        values["rewards/accuracies"] = values.pop("reward/accuracy")
    return record | {"values": values}


def finalize(metrics: Metrics) -> Values:
    """Return merged metrics as floats, after one transfer of the whole tree.

    The host divides, as `types.*.result()` would: asking the device would queue behind the next
    step.
    """
    return {name: _result(name, metric) for name, metric in jax.device_get(metrics).items()}


class Lagged:
    """Fetch a step's metrics only after the next step was dispatched, so the device never waits.

    for step ...:
        state, metrics = train_step(state, batch)
        if (ready := lagged.push(step, metrics)) is not None: write(*ready)
    if (ready := lagged.flush()) is not None: write(*ready)
    """

    def __init__(self):
        self._pending: tuple[int, Metrics] | None = None

    def push(self, step: int, metrics: Metrics) -> tuple[int, Values] | None:
        """Keep this step's metrics; return the previous step and its values, or None at the first
        call.
        """
        ready = self.flush()
        self._pending = (step, metrics)
        return ready

    def flush(self) -> tuple[int, Values] | None:
        """Return the step still held and its values, or None."""
        if self._pending is None:
            return None
        (step, metrics), self._pending = self._pending, None
        return step, finalize(metrics)


def sample_stats(samples: Samples) -> Values:
    """Measure the length, the ends and the repetition of sampled completions."""
    tokens, length = np.asarray(samples.tokens), np.asarray(samples.length)
    group, one_each = np.indices(length.shape)[0].ravel(), np.arange(length.size)
    rows, lengths = tokens.reshape(length.size, -1), length.ravel()
    return {
        **length_percentiles(lengths),
        "eos_rate": float(np.mean(np.asarray(samples.finish) == FINISH_EOS)),
        "distinct_1": _distinct(rows, lengths, group, 1),
        "distinct_2": _distinct(rows, lengths, group, 2),
        "repetition_4": 1.0 - _distinct(rows, lengths, one_each, 4, nothing=1.0),
    }


def length_percentiles(length: Array) -> Values:  # any shape, int
    """Return mean, 10th, 50th and 90th percentile and maximum of completion lengths, in tokens."""
    values = dict(zip(("p10", "p50", "p90"), np.percentile(length, (10, 50, 90)), strict=True))
    values |= {"mean": np.mean(length), "max": np.max(length)}
    return {f"length_{name}": float(value) for name, value in values.items()}


def _distinct(
    rows: np.ndarray,  # [R,T] int32
    lengths: np.ndarray,  # [R] int32
    group: np.ndarray,  # [R] int, which rows are counted together
    n: int,
    nothing: float = 0.0,
) -> float:
    """Return distinct n-grams / n-grams of each group, averaged over the groups that have any."""
    token, vocabulary = code, codes = _rank(rows)
    # Ranks are dense, so the product never overflows and equal codes are equal n-grams.
    for shift in range(1, n):
        code, codes = _rank(code[:, :-1] * vocabulary + token[:, shift:])
    real = np.arange(code.shape[1]) < (lengths - n + 1)[:, None]
    if not real.any():
        return nothing
    keys = (group[:, None] * codes + code)[real]
    total = np.bincount(keys // codes)
    distinct = np.bincount(np.unique(keys) // codes)
    return float(np.mean(distinct[total > 0] / total[total > 0]))


def _rank(values: np.ndarray) -> tuple[np.ndarray, int]:
    unique, inverse = np.unique(values, return_inverse=True)
    return inverse.reshape(values.shape), len(unique)


def _result(name: str, metric: Mean | Max | Min) -> float:
    match metric:
        case Mean(total, weight):
            return float(total) / float(weight) if weight != 0 else 0.0
        case Max(value) | Min(value):
            return float(value)
    raise TypeError(f"metric {name} is {type(metric).__name__}: make it a Mean, Max or Min")


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
