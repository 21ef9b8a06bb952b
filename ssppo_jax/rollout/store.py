"""Keep one iteration's training data on disk and cut it into batches.

The rollout is written before any update: the policy that sampled it will be gone.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from ssppo_jax.data import Cut, MicroBatch, bucket_of
from ssppo_jax.errors import DataError
from ssppo_jax.files import write_atomically
from ssppo_jax.models.packing import Packing, make_packing
from ssppo_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Hold M training rows and the measurements made while collecting them."""

    batch: Batch  # NumPy, leading axis M; prompts padded to the longest
    records: list[dict]  # one per row, for people: texts and what was said of them
    # phase -> values, written to the log when the rollout is used
    metrics: dict[str, dict[str, float]]
    wall: dict[str, dict[str, float]]


def take_rows(batch: Batch, rows: np.ndarray, size: int, buckets: Sequence[int]) -> Batch:
    """Return `size` rows of a rollout, prompts padded to a bucket.

    Missing rows, and those of number -1, are fillers with weight 0 and an empty mask.
    """
    rows = np.pad(rows, (0, size - len(rows)), constant_values=-1)
    real = rows >= 0
    index, counted = np.where(real, rows, rows[real][0]), real.astype(np.float32)
    part = jax.tree.map(lambda x: x[index], batch)
    width = bucket_of(part.prompt_length, buckets)
    prompt = np.zeros((size, width), np.int32)
    shared = min(width, part.prompt.shape[1])
    prompt[:, :shared] = part.prompt[:, :shared]
    return part._replace(
        prompt=prompt,
        mask=part.mask * counted[:, None, None],
        weight=part.weight * counted,
    )


def take_micro_batch(batch: Batch, micro: MicroBatch, cut: Cut) -> tuple[Batch, Packing | None]:
    """Return the rows of a micro-batch, and their packing if it has streams.

    Fillers are those of `take_rows`, and have no place in a stream."""
    part = take_rows(batch, micro.rows, len(micro.rows), cut.prompt_buckets)
    if not micro.stream:
        return part, None
    packing = make_packing(
        np.asarray(part.prompt_length) * (micro.rows >= 0),
        np.asarray(part.mask).sum(2).astype(int),
        p=micro.prompt,
        t=micro.completion,
        ways=cut.ways,
        stream=micro.stream,
    )
    return part, packing


def save_rollout(path: Path, rollout: Rollout, identity: dict) -> None:
    """Write a rollout atomically; `identity` (run, iteration, step) says whose it is."""
    meta = {
        "identity": identity,
        "records": rollout.records,
        "metrics": rollout.metrics,
        "wall": rollout.wall,
    }
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    arrays = {name: x for name, x in rollout.batch._asdict().items() if x is not None}
    write_atomically(path, lambda file: np.savez(file, meta=text, **arrays))


def load_rollout(path: Path, identity: dict) -> Rollout | None:
    """Load the rollout at `path` if it has this identity, else return None."""
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            meta = json.loads(file["meta"].tobytes())
            named = [x for x in Batch._fields if x in file or x not in Batch._field_defaults]
            arrays = {name: file[name] for name in named}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: damaged rollout ({error}); delete the file, and it is sampled again if the"
            " policy that sampled it is still there"
        ) from error
    if meta["identity"] != identity:
        return None
    return Rollout(Batch(**arrays), meta["records"], meta["metrics"], meta["wall"])
