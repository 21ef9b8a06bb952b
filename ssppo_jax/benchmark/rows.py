"""Read the questions of a benchmark from a file, TensorFlow Datasets or the Hugging Face hub."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ssppo_jax.config import expanded
from ssppo_jax.data.sources import hub_rows, tfds_rows
from ssppo_jax.errors import ConfigError, DataError, listed
from ssppo_jax.files import read_lines


def read_rows(
    source: str,
    *,
    fields: Sequence[str],
    what: str,
    split: str = "test",
    subset: str = "",
    key: str = "path",
) -> list[dict[str, Any]]:
    """Read rows that have some fields.

    Args:
        source: a .jsonl or .json file (also .gz), the folder of a prepared TFDS data set, or
          hf:OWNER/NAME on the hub.
        fields: that every row must have.
        what: of the rows, for errors ("GSM8K questions").
        split: of a TFDS or hub data set.
        subset: of a hub data set; empty takes its default.
        key: of the config that names the source, for errors.

    Raises:
        ConfigError: no source, or a package is missing.
        DataError: it cannot be read, is empty, or rows lack a field (`file:line: reason`).
    """
    if not source:
        raise ConfigError(
            f"no {what}; give a file, the folder of a TFDS data set, or hf:OWNER/NAME:"
            f" --config.benchmark.{key}=FILE"
        )
    if source.startswith("hf:"):
        repo = source.removeprefix("hf:")
        rows = list(hub_rows(repo, split=split, subset=subset, revision=""))
    elif expanded(source).is_dir():
        rows = list(tfds_rows(source, split=split))
    else:
        rows = list(_file(source))
    bad = []
    for place, row in rows:
        lacking = [f for f in fields if not isinstance(row, dict) or f not in row]
        if lacking:
            has = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            bad.append(f"{place}: no {', '.join(lacking)}; the row has: {has or 'nothing'}")
    if bad:
        raise DataError("\n".join([f"{what}:", *listed(bad)]))
    if not rows:
        raise DataError(f"{source}: holds no {what}")
    return [row for _, row in rows if isinstance(row, dict)]


def turns_of(row: dict[str, Any], place: str) -> list[str]:
    """Return the user turns of a question in FastChat's or Arena-Hard's format.

    Raises:
        DataError: they are no list of texts.
    """
    listed = row["turns"]
    turns = listed if isinstance(listed, list) else []
    texts = [turn.get("content") if isinstance(turn, dict) else turn for turn in turns]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{place}: question {row['question_id']}: its turns are no list of texts")
    return [str(text) for text in texts]


def _file(source: str) -> Iterator[tuple[str, Any]]:
    path = expanded(source)
    try:
        blob = path.read_bytes()
        if path.suffix == ".gz":
            blob = gzip.decompress(blob)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise DataError(f"{source}: not a whole gzip file: {error}") from None
    if Path(path.name.removesuffix(".gz")).suffix == ".json":
        rows = _parsed(blob, source)
        if not isinstance(rows, list):
            raise DataError(f"{source}: not a JSON list of records")
        yield from ((f"{source}: record {i + 1}", row) for i, row in enumerate(rows))
        return
    for number, line in enumerate(read_lines(blob), 1):
        if line.strip():
            yield f"{source}:{number}", _parsed(line, f"{source}:{number}")


def _parsed(blob: bytes, place: str) -> Any:
    try:
        return json.loads(blob)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}") from None
