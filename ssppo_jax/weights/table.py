"""Read encoders and rankers from safetensors by a table of names: no tensor is left unexplained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from ssppo_jax.errors import ConfigError
from ssppo_jax.types import PyTree
from ssppo_jax.weights.hf import flatten, insert

Json = TypeVar("Json", dict, list)

DTYPES = ("float32", "bfloat16")  # to compute in
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class Row(NamedTuple):
    """One tensor under two names. `{}` in the file's name is the layer; such tensors are stacked on
    a leading axis."""

    path: str  # in our parameters
    name: str  # in the file
    transpose: bool = False


def dense(path: str, name: str) -> tuple[tuple, ...]:
    """Return the rows of a torch Linear, whose kernel is stored [out, in]."""
    return (f"{path}/kernel", f"{name}.weight", True), (f"{path}/bias", f"{name}.bias")


def norm(path: str, name: str) -> tuple[tuple, ...]:
    """Return the rows of a torch LayerNorm."""
    return (f"{path}/scale", f"{name}.weight"), (f"{path}/bias", f"{name}.bias")


def assemble(
    rows: Sequence[Row],
    layers: int,
    tensors: dict[str, np.ndarray],
    wanted: PyTree,  # shapes of the parameters
    folder: Path,
    ignorable: re.Pattern,
) -> tuple[dict, tuple[str, ...]]:
    """Stack and transpose tensors into the shapes the module asks for; return (params, ignored).

    Raises ConfigError for missing, unknown and misshapen tensors, all of them listed."""
    names = {
        row.path: [row.name.format(i) for i in range(layers)] if "{}" in row.name else [row.name]
        for row in rows
    }
    used = {name for group in names.values() for name in group}
    ignored = tuple(sorted(n for n in set(tensors) - used if ignorable.fullmatch(n)))
    problems = [f"missing {n}" for n in sorted(used - set(tensors))]
    problems += [f"unknown {n}" for n in sorted(set(tensors) - used - set(ignored))]
    _raise_listed(problems, folder)
    shapes = dict(flatten(wanted))
    params: dict = {}
    for row in rows:
        parts = [tensors[name].T if row.transpose else tensors[name] for name in names[row.path]]
        shape = shapes[row.path].shape[1:] if "{}" in row.name else shapes[row.path].shape
        problems += [
            f"{n} has shape {tensors[n].shape}, config.json asks for"
            f" {shape[::-1] if row.transpose else shape}"
            for n, part in zip(names[row.path], parts, strict=True)
            if part.shape != shape
        ]
        if not problems:
            whole = np.stack(parts) if "{}" in row.name else parts[0]
            insert(params, row.path, whole.astype(np.float32))
    _raise_listed(problems, folder)
    return params, ignored


def _raise_listed(problems: list[str], folder: Path) -> None:
    if problems:
        raise ConfigError(
            f"the weights in {folder} do not fit its config.json:\n  " + "\n  ".join(problems)
        )


def weights_file(folder: Path) -> Path:
    file = folder / "model.safetensors"
    if file.exists():
        return file
    pickled = sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES)
    if pickled:
        raise ConfigError(
            f"{folder} holds {', '.join(pickled)}: pickle can run code when opened and is refused."
            " Convert once where you trust the file (transformers: model.save_pretrained(folder)"
            " writes model.safetensors)."
        )
    raise ConfigError(
        f"{folder} has no model.safetensors (one file; sharded encoders are not read)"
    )


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(file, framework="np") as reader:
            return {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ConfigError(f"{file} is not a readable safetensors file: {error}") from None


def read_json(file: Path, kind: type[Json]) -> Json:
    """Read a JSON object (`dict`) or array (`list`); ConfigError if the file holds neither."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist; a sentence encoder folder needs it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not JSON: {error}") from None
    if not isinstance(value, kind):
        raise ConfigError(f"{file} holds a {type(value).__name__}, not a {kind.__name__}")
    return value


def number_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    """List an encoder's settings that are no numbers above 0; ids may be 0, an eps a fraction."""
    for name, value in settings.items():
        whole = "eps" not in name
        if type(value) is not int and (whole or type(value) is not float):
            yield f"{name} is {value!r:.60}, not a {'whole ' if whole else ''}number"
        elif not (value >= 0 if name.endswith("_id") else value > 0):
            yield f"{name} is {value!r:.60}, which is too small"


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """Read tokenizer.json of an encoder with `vocab_size` embeddings.

    A text that spells a special token becomes it here, so no id may lie beyond the embeddings.
    """
    file = folder / "tokenizer.json"
    if not file.exists():
        raise ConfigError(
            f"{folder} has no tokenizer.json (transformers: save it with a fast tokenizer)"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise ConfigError(
            f"{file} is not a tokenizer the `tokenizers` library reads: {error}"
        ) from None
    token, last = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1], default=("", -1))
    if last >= vocab_size:
        raise ConfigError(
            f"{file}: text can become {token!r} ({last}), and the model has {vocab_size}"
            " embeddings; use the tokenizer that belongs to the model"
        )
    return tokenizer
