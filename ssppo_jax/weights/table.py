"""Read encoders and rankers from safetensors by a table of names: no tensor is left unexplained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from ssppo_jax.errors import ConfigError
from ssppo_jax.types import PyTree
from ssppo_jax.weights.hf import PICKLES, flatten, insert
from ssppo_jax.weights.names import differences

Json = TypeVar("Json", dict, list)

DTYPES = ("float32", "bfloat16")  # to compute in


class Row(NamedTuple):
    """One tensor under two names. `{}` in the file's name is the layer; such tensors are stacked on
    a leading axis."""

    path: str  # in our parameters
    name: str  # in the file
    transpose: bool = False

    @property
    def stacked(self) -> bool:
        return "{}" in self.name

    def names(self, layers: int) -> list[str]:
        """Return the tensors of the file, layer by layer."""
        return [self.name.format(i) for i in range(layers)] if self.stacked else [self.name]


def dense(path: str, name: str) -> tuple[tuple, ...]:
    """Return the rows of a torch Linear, whose kernel is stored [out, in]."""
    return (f"{path}/kernel", f"{name}.weight", True), (f"{path}/bias", f"{name}.bias")


def norm(path: str, name: str) -> tuple[tuple, ...]:
    """Return the rows of a torch LayerNorm."""
    return (f"{path}/scale", f"{name}.weight"), (f"{path}/bias", f"{name}.bias")


def module_shapes(module: Any) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the shapes of the parameters of an encoder or a ranker."""
    tokens, length = jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(module.init, jax.random.key(0), tokens, length)["params"]


def assemble(
    rows: Sequence[Row],
    module: Any,  # an encoder or a ranker
    tensors: dict[str, np.ndarray],
    folder: Path,
    ignorable: re.Pattern,
) -> tuple[dict, tuple[str, ...]]:
    """Stack and transpose tensors into the shapes the module asks for; return (params, ignored).

    Raises ConfigError for missing, unknown and misshapen tensors, all of them listed."""
    shapes = dict(flatten(module_shapes(module)))
    places = {row: row.names(module.arch.layers) for row in rows}
    wanted: dict[str, tuple[int, ...]] = {}
    for row, names in places.items():
        shape = shapes[row.path].shape
        shape = shape[1:] if row.stacked else shape
        wanted |= dict.fromkeys(names, shape[::-1] if row.transpose else shape)
    ignored = {name for name in tensors.keys() - wanted.keys() if ignorable.fullmatch(name)}
    found = {name: tensor.shape for name, tensor in tensors.items() if name not in ignored}
    problems = differences(found, wanted, "config.json asks for")
    if problems:
        raise ConfigError(
            f"the weights in {folder} do not fit its config.json:\n  " + "\n  ".join(problems)
        )
    params: dict = {}
    for row, names in places.items():
        parts = [tensors[name].T if row.transpose else tensors[name] for name in names]
        whole = np.stack(parts) if row.stacked else parts[0]
        insert(params, row.path, whole.astype(np.float32))
    return params, tuple(sorted(ignored))


def _weights_file(folder: Path) -> Path:
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


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a folder; pickled weights are refused."""
    file = _weights_file(folder)
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
