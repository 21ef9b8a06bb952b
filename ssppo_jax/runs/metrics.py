"""Log what a run measures: one JSON line per record, mirrored to TensorBoard.

`metrics.jsonl` is the truth. It is append-only and is cut back to the checkpoint's byte offset on
resume, so a resumed log equals an uninterrupted one except for the `wall` field. TensorBoard and
the report are made from it.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssppo_jax.errors import ConfigError, UserError
from ssppo_jax.files import read_records, writing
from ssppo_jax.types import FINISH_EOS, Array, Max, Mean, Metrics, Min, Samples

log = logging.getLogger(__name__)

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


class MetricLog:
    """Append records to `folder/metrics.jsonl` and mirror them to `folder/tensorboard`, on process
    0 only.

    A line is `{"step", "iteration", "phase", "values": {...}, "wall": {"time", ...}}`. Values that
    are NaN or infinite are null, because NaN is not JSON, and are listed in `"nonfinite": [names]`.

    Args:
        folder: the run's folder.
        tensorboard: 'auto' (when installed), 'on' or 'off'.

    Raises:
        ConfigError: tensorboard='on' and it is not installed, or another word.
    """

    def __init__(self, folder: str | Path, *, tensorboard: str = "auto"):
        self._board_class = _board_class(tensorboard)
        self._board = None
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
        try:
            if self._board_class is not None and self._board is None:
                self._board = self._replay()
            elif self._board is not None:
                _mirror(self._board, record)
        except OSError as error:
            log.warning("the TensorBoard mirror ends here, %s goes on: %s", self.path.name, error)
            self._board_class = self._board = None

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
        self._file.truncate(offset)
        self._close_board()

    def close(self) -> None:
        self._file.close()
        self._close_board()

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _close_board(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None

    def _replay(self):
        """Make the mirror anew from the whole log, without what a resume cut off."""
        folder = self.path.parent / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        board = self._board_class(str(folder))
        for record in read_metrics(self.path):
            _mirror(board, record)
        return board


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
    for shift in range(
        1, n
    ):  # ranks are dense, so the product never overflows and equal codes are equal n-grams
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


def _mirror(board, record: dict) -> None:
    for name, value in (record["values"] | record["wall"]).items():
        if value is not None and name != "time":
            board.add_scalar(
                f"{record['phase']}/{name}", value, record["step"], wall_time=record["wall"]["time"]
            )


def _board_class(tensorboard: str):
    """Return TensorBoard's writer, which needs neither torch nor TensorFlow; None when off or
    missing.
    """
    if tensorboard not in ("auto", "on", "off"):
        raise ConfigError(f"tensorboard={tensorboard!r}: use 'auto', 'on' or 'off'")
    if tensorboard == "off":
        return None
    try:
        from tensorboard.summary import Writer
    except ImportError as error:
        if tensorboard == "on":
            raise ConfigError(
                "tensorboard='on', but it is not installed: pip install tensorboard"
            ) from error
        log.info("no TensorBoard mirror: pip install 'ssppo_jax[tensorboard]' adds one")
        return None
    return Writer
