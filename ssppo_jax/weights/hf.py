"""Hugging Face model folders in and out: safetensors only, one tensor at a time, bit for bit.

Weights are never unpickled and code named by a config (`auto_map`) is never run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import json
import math
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ssppo_jax.distributed import hosts
from ssppo_jax.errors import ConfigError, DataError, listed
from ssppo_jax.files import sync, writing
from ssppo_jax.models.arch import Arch
from ssppo_jax.models.hf_config import arch_from_hf, arch_to_hf, id_tuple
from ssppo_jax.types import Array, PyTree
from ssppo_jax.weights import names

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
MORE_TEMPLATES = "additional_chat_templates"  # a folder: a template each, as for tool calls
_TILE = 256  # elements of a side
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# constants that old exports stored as tensors
_BUFFERS = ("rotary_emb.inv_freq", "masked_bias", "attn.bias")


def read_arch(folder: str | Path) -> Arch:
    """Return the `Arch` of a model folder.

    Stop ids of `generation_config.json` are added: Llama 3 keeps some only there.

    Raises:
      ConfigError: no config.json, or a model that is not supported.
      DataError: JSON that does not parse.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder} has no config.json; give a Hugging Face model folder, a repo id, or a .gguf"
            " file"
        )
    config = read_json(folder / "config.json")
    try:
        arch = arch_from_hf(config)
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from None
    if not (folder / "generation_config.json").is_file():
        return arch
    stops = read_json(folder / "generation_config.json").get("eos_token_id")
    if not all(type(i) is int for i in (stops if isinstance(stops, list) else [stops or 0])):
        raise DataError(
            f"{folder / 'generation_config.json'}: eos_token_id must be a token id or a list of"
            f" them, not {stops!r:.60}"
        )
    extra = id_tuple(stops)
    return dataclasses.replace(arch, eos_ids=tuple(dict.fromkeys(arch.eos_ids + extra)))


def load_params(folder: str | Path, arch: Arch, *, dtype: Any = np.float32) -> PyTree:
    """Read the parameter tree of a folder of safetensors as NumPy arrays on the host.

    Args:
      folder: a model folder (`model.safetensors`, or shards with an index).
      arch: what `read_arch` says of it.
      dtype: of the returned leaves; bfloat16 through ml_dtypes.

    Raises:
      ConfigError: no safetensors (pickles are refused), or names or shapes that do not match
        `arch`, all listed.
      DataError: a damaged or hostile file.
    """
    tree: PyTree = {}
    with _checked(Path(folder), arch) as where:
        for leaf in names.leaves(arch):
            whole = (slice(None),) * len(names.shape(leaf, arch))
            insert(tree, leaf.path, read_blocks(where, leaf, arch, np.dtype(dtype), [whole])[0])
    return tree


def load_placed(
    folder: str | Path,
    arch: Arch,
    wanted: PyTree[jax.ShapeDtypeStruct],
) -> PyTree[jax.Array]:
    """Read parameters straight into the mesh, each leaf with the sharding and dtype of `wanted`.

    Leaves of `wanted` that the folder cannot have are not looked at. Host memory holds one tensor
    of the folder, and of the leaf being read this process's own shards, once each."""
    structs: dict[str, Any] = dict(flatten(wanted))
    tree: PyTree = {}
    with _checked(Path(folder), arch) as where:
        for leaf in names.leaves(arch):
            insert(tree, leaf.path, _placed(where, leaf, arch, structs[leaf.path]))
    return tree


def _placed(
    where: dict[str, Any], leaf: names.Leaf, arch: Arch, wanted: jax.ShapeDtypeStruct
) -> jax.Array:
    """Read a leaf onto this process's devices; equal parts of it share one buffer on the host."""
    parts = wanted.sharding.addressable_devices_indices_map(wanted.shape)
    keys = {device: str(part) for device, part in parts.items()}
    distinct = {keys[device]: part for device, part in parts.items()}
    blocks = read_blocks(where, leaf, arch, np.dtype(wanted.dtype), list(distinct.values()))
    held = dict(zip(distinct, blocks, strict=True))
    shards = [jax.device_put(held[key], device) for device, key in keys.items()]
    return jax.make_array_from_single_device_arrays(wanted.shape, wanted.sharding, shards)


def save_params(
    params: PyTree,
    arch: Arch,
    folder: str | Path,
    *,
    tokenizer_from: str | Path | None = None,
    dtype: Any = None,
    max_shard_bytes: int = 4 * 2**30,
    replace: bool = False,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write a folder that plain transformers loads: safetensors, configs, tokenizer, template.

    Written beside `folder` and renamed, so a folder that exists is complete. One leaf and one shard
    are in host memory. Where several processes hold JAX arrays together, all call it and process 0
    writes. NumPy arrays are written by whoever calls: each host has a cache of its own.

    Args:
      params: the decoder's tree; leaves NumPy or JAX arrays.
      arch: its architecture.
      folder: where to; must not exist, or be empty.
      tokenizer_from: a model folder whose tokenizer files, chat templates and
        generation_config.json are copied, and whose padding id and label names are kept; none when
        None.
      dtype: of the written tensors; each leaf's own when None.
      max_shard_bytes: start a new shard above this.
      replace: put it in the place of a folder that is there.
      texts: {file name: content} written beside, such as a model card or another chat template.

    Raises:
      ConfigError: the tree does not match `arch` (every difference listed), or `folder` holds
        something and is not to be replaced.
      WriteError: the disk is full, or the place cannot be written to.
    """
    flat = dict(flatten(params))
    _check_tree(flat, arch)
    kinds = {
        path: np.dtype(dtype if dtype is not None else leaf.dtype) for path, leaf in flat.items()
    }
    together = any(isinstance(leaf, jax.Array) for leaf in flat.values())
    if together and not hosts.is_first():  # its parts of the leaves are asked for
        for _ in _exported(flat, arch, kinds):
            pass
        return Path(folder)
    with new_folder(folder, replace=replace) as tmp:
        kept = _kept_fields(tokenizer_from, arch)
        write_model(tmp, arch, kinds, _exported(flat, arch, kinds), max_shard_bytes, kept)
        if tokenizer_from is not None:
            _copy_tokenizer(Path(tokenizer_from), tmp)
        write_texts(tmp, texts)
    return Path(folder)


def write_texts(folder: Path, texts: Mapping[str, str] | None) -> None:
    """Write {file name: content} into a folder, in UTF-8."""
    for name, content in (texts or {}).items():
        (folder / name).write_text(content, encoding="utf-8")


def stored_dtype(folder: str | Path) -> np.dtype:
    """Return the dtype that most of a model folder's tensors are stored in."""
    with _opened(Path(folder)) as where:
        kinds = Counter(handle.get_slice(name).get_dtype() for name, handle in where.items())
    found = [_FLOATS[kind] for kind, _ in kinds.most_common() if kind in _FLOATS]
    return np.dtype(found[0] if found else "float32")


def _kept_fields(source: str | Path | None, arch: Arch) -> dict[str, Any]:
    """Return the fields of a model's config.json that no number depends on here, but users do."""
    if source is None or not (Path(source) / "config.json").is_file():
        return {}
    config = read_json(Path(source) / "config.json")
    wanted = ["pad_token_id"]
    if arch.num_labels and len(config.get("id2label") or ()) == arch.num_labels:
        wanted += ["id2label", "label2id", "problem_type"]
    return {name: config[name] for name in wanted if config.get(name) is not None}


def write_model(
    folder: Path,
    arch: Arch,
    kinds: Mapping[str, np.dtype],  # path of a leaf -> the dtype that it is written in
    tensors: Iterable[tuple[str, np.ndarray]],  # in the order of the table of names
    max_shard_bytes: int,
    more: dict[str, Any],  # fields of config.json
) -> None:
    """Write weights, config.json and generation_config.json (special ids, no sampling defaults)."""
    nbytes = {
        name: math.prod(names.hf_shape(leaf, arch)) * kinds[leaf.path].itemsize
        for leaf in names.leaves(arch)
        for name in names.hf_names(leaf, arch)
    }
    _write_tensors(folder, nbytes, tensors, max_shard_bytes)
    config = arch_to_hf(arch) | more | {"torch_dtype": kinds["embed/embedding"].name}
    write_json(folder / "config.json", config)
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    padding = more.get("pad_token_id", next(iter(arch.eos_ids), None))
    write_json(folder / "generation_config.json", ids | {"pad_token_id": padding})


def _write_tensors(
    folder: Path,
    nbytes: dict[str, int],  # tensor name -> size, in the order of `tensors`
    tensors: Iterable[tuple[str, np.ndarray]],
    max_shard_bytes: int,
) -> None:
    """Stream named tensors into `model.safetensors`, or into numbered shards with an index."""
    plan = _shards(nbytes, max_shard_bytes)
    count = len(plan)
    files = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    if count == 1:
        files = [SINGLE]
    stream = iter(tensors)
    weight_map: dict[str, str] = {}
    for file, shard in zip(files, plan, strict=True):
        held = dict(next(stream) for _ in shard)
        if list(held) != shard:
            raise ValueError(
                f"tensors out of order: planned {shard[:3]}..., got {list(held)[:3]}..."
            )
        save_tensors(held, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    if count > 1:
        index = {"metadata": {"total_size": sum(nbytes.values())}, "weight_map": weight_map}
        write_json(folder / INDEX, index)


@contextlib.contextmanager
def new_folder(folder: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Make a temporary folder that becomes `folder` if the block succeeds, and vanishes if not.

    What a killed attempt left beside it is removed first. The kernel freed its lock.

    Args:
      folder: where to.
      replace: put it in the place of a folder that is there.

    Raises:
      ConfigError: `folder` exists and is not an empty folder.
      WriteError: the disk is full, or the place cannot be written to.
    """
    folder = Path(os.path.abspath(folder))
    if not replace and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} exists and is not empty; choose another output folder, or remove it first"
        )
    with writing(folder), contextlib.ExitStack() as stack:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.tmp-*"):
            with _locked(left) as ours:
                if ours:
                    shutil.rmtree(left, ignore_errors=True)
        tmp = folder.parent / f".{folder.name}.tmp-{secrets.token_hex(6)}"
        tmp.mkdir()
        stack.callback(shutil.rmtree, tmp, ignore_errors=True)
        stack.enter_context(_locked(tmp))
        yield tmp
        for file in tmp.iterdir():
            sync(file)
        sync(tmp)
        if replace and folder.exists():
            old = folder.parent / f".{folder.name}.tmp-{secrets.token_hex(6)}"
            stack.callback(shutil.rmtree, old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(tmp, folder)
        sync(folder.parent)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a lock on a folder, which the kernel frees when this process dies; say if it is held."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # another process has just removed it
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = True
    except OSError:  # someone is writing it, or this file system has no locks
        held = False
    try:
        yield held
    finally:
        os.close(descriptor)


def save_tensors(tensors: dict[str, np.ndarray], file: Path) -> None:
    """Write one safetensors file that others may read too.

    Raises:
      WriteError: the disk is full.
    """
    try:
        save_file(tensors, file, metadata={"format": "pt"})  # transformers needs metadata
    except SafetensorError as error:  # its own kind of error for a full disk
        raise OSError(str(error)) from error
    # safetensors leaves it to its owner alone; others may serve it where the user's mask lets them
    os.chmod(file, file.parent.stat().st_mode & 0o666)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
      DataError: unreadable, not UTF-8, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def flatten(tree: PyTree, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """Yield ('layers/attn/q/kernel', leaf) pairs of a nested dict."""
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(value, dict):
            yield from flatten(value, path)
        else:
            yield path, value


def insert(tree: PyTree, path: str, value: Array) -> None:
    """Set tree['a']['b'] = value for path 'a/b', making the dicts on the way."""
    *parents, last = path.split("/")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value


def _files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder; an index is untrusted, so only plain names pass."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise ConfigError(_no_weights(folder))
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError(f"{folder / INDEX}: no weight_map")
    shards = sorted({str(file) for file in weight_map.values()})
    for file in shards:
        if file != os.path.basename(file) or "\\" in file or not file.endswith(".safetensors"):
            raise DataError(
                f"{folder / INDEX}: refused shard name {file!r}; only NAME.safetensors in the same"
                " folder"
            )
    absent = [file for file in shards if not (folder / file).is_file()]
    if absent:
        raise DataError(f"{folder}: missing shards {', '.join(absent)}; download the model again")
    return [folder / file for file in shards]


def _no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder"
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        return (
            f"{folder} has only pickled weights ({', '.join(pickles[:3])}), which can run code when"
            " opened and are refused; re-save them with transformers in a place you trust:"
            " AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    return f"{folder} has neither {SINGLE} nor {INDEX}; give a folder with safetensors weights"


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[dict[str, Any]]:
    """Map tensor names to the open safetensors handles that hold them."""
    where: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for file in _files(folder):
            try:
                handle = stack.enter_context(safe_open(file, "numpy"))
            except (SafetensorError, OSError) as error:
                raise DataError(
                    f"{file}: not a valid safetensors file ({error}); download it again"
                ) from None
            twice = sorted(where.keys() & set(handle.keys()))
            if twice:
                raise DataError(f"{file}: tensors also in another shard: {few(twice)}")
            where |= dict.fromkeys(handle.keys(), handle)
        yield where


@contextlib.contextmanager
def _checked(folder: Path, arch: Arch) -> Iterator[dict[str, Any]]:
    """Open a folder and check that every name, shape and dtype is as `arch` has it."""
    with _opened(folder) as where:
        _check_names(where, arch, folder)
        if arch.tie_embeddings and "lm_head.weight" in where:
            _check_tied(where, folder)
        yield where


def _check_names(where: dict[str, Any], arch: Arch, folder: str | Path) -> None:
    """Raise ConfigError listing every tensor that is left out, left over or misshapen."""
    wanted = {name: leaf for leaf in names.leaves(arch) for name in names.hf_names(leaf, arch)}
    tied = {"lm_head.weight"} if arch.tie_embeddings else set()
    extra = [
        name
        for name in where
        if name not in wanted and name not in tied and not name.endswith(_BUFFERS)
    ]
    problems = []
    if absent := [name for name in wanted if name not in where]:
        problems.append(f"missing {few(absent)}")
    if absent == ["lm_head.weight"]:
        problems.append(
            'if the model ties its head to the embedding, set "tie_word_embeddings": true in'
            " config.json"
        )
    if extra:
        problems.append(
            f"not part of a {arch.model_type} model of {arch.num_layers} layers: {few(extra)}"
        )
    for name in (name for name in where if name in wanted or name in tied):
        view = where[name].get_slice(name)
        expected: tuple[int, ...] = (arch.vocab_size, arch.hidden_size)
        if name in wanted:
            expected = names.hf_shape(wanted[name], arch)
        shape = tuple(view.get_shape())
        if shape != expected:
            problems.append(f"{name} has shape {shape}, config.json says {expected}")
        if view.get_dtype() not in _FLOATS:
            problems.append(
                f"{name} is {view.get_dtype()}; supported: {', '.join(_FLOATS)} (unquantised)"
            )
    if problems:
        shown = "\n  ".join(listed(problems))
        raise ConfigError(f"{folder}: weights do not match config.json\n  {shown}")


def read_blocks(
    where: dict[str, Any],  # tensor name -> open safetensors file
    leaf: names.Leaf,
    arch: Arch,
    dtype: np.dtype,
    parts: list[tuple[slice, ...]],  # of the whole leaf, in our axes, layers included
) -> list[np.ndarray]:
    """Read parts of one leaf in our layout, an array each; one of its tensors is held at a time."""
    whole = names.shape(leaf, arch)
    blocks = [
        np.empty([len(range(n)[s]) for s, n in zip(part, whole, strict=True)], dtype)
        for part in parts
    ]
    for layer, name in enumerate(names.hf_names(leaf, arch)):
        tensor = names.from_hf(_tensor(where, name), leaf, arch)
        for part, block in zip(parts, blocks, strict=True):
            if not leaf.stacked:
                _fill(block, tensor[part])
            elif layer in (held := range(arch.num_layers)[part[0]]):
                _fill(block[held.index(layer)], tensor[part[1:]])
        del tensor  # before the next is read
    return blocks


def _fill(block: np.ndarray, source: np.ndarray) -> None:
    """Set block[...] = source, tile by tile where the source is transposed.

    Element by element every read would be of another page, several times as slow."""
    if block.ndim < 2 or source.flags.c_contiguous:
        block[...] = source
        return
    down, across = _TILE, max(1, _TILE // math.prod(block.shape[2:]))
    for row in range(0, block.shape[0], down):
        for column in range(0, block.shape[1], across):
            tile = slice(row, row + down), slice(column, column + across)
            block[tile] = source[tile]


def _tensor(where: dict[str, Any], name: str) -> np.ndarray:
    try:
        return where[name].get_tensor(name)
    except SafetensorError as error:
        raise DataError(f"tensor {name} cannot be read: {error}") from None


def _check_tied(where: dict[str, Any], folder: str | Path) -> None:
    head, embedding = (
        where[name].get_slice(name) for name in ("lm_head.weight", "model.embed_tokens.weight")
    )
    count, step = head.get_shape()[0], 4096  # rows at a time, so that neither is held whole
    parts = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    if not all(np.array_equal(head[part], embedding[part]) for part in parts):
        raise ConfigError(
            f"{folder}: config.json ties the head to the embedding, but lm_head.weight differs from"
            ' it; set "tie_word_embeddings": false in config.json to use both'
        )


def _check_tree(flat: dict[str, Array], arch: Arch) -> None:
    wanted = {leaf.path: names.shape(leaf, arch) for leaf in names.leaves(arch)}
    found = {path: tuple(leaf.shape) for path, leaf in flat.items()}
    problems = names.differences(found, wanted, "the architecture says")
    if problems:
        raise ConfigError("parameters do not match the architecture:\n  " + "\n  ".join(problems))


def _exported(
    flat: dict[str, Array], arch: Arch, kinds: dict[str, np.dtype]
) -> Iterator[tuple[str, np.ndarray]]:
    for leaf in names.leaves(arch):
        host = hosts.on_host(flat[leaf.path])
        rows = host if leaf.stacked else host[None]
        for name, row in zip(names.hf_names(leaf, arch), rows, strict=True):
            yield name, np.ascontiguousarray(names.to_hf(row, leaf, arch), dtype=kinds[leaf.path])


def _shards(nbytes: dict[str, int], limit: int) -> list[list[str]]:
    """Cut the names, in order, before a shard would pass `limit`; a larger tensor is alone."""
    plan: list[list[str]] = [[]]
    held = 0
    for name, size in nbytes.items():
        if plan[-1] and held + size > limit:
            plan.append([])
            held = 0
        plan[-1].append(name)
        held += size
    return plan


def _copy_tokenizer(source: Path, target: Path) -> None:
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise ConfigError(
            f"{source} has no tokenizer files ({', '.join(TOKENIZER_FILES[:2])}, ...)"
        )
    if (source / "generation_config.json").is_file():
        found.append("generation_config.json")
    for name in found:
        shutil.copyfile(source / name, target / name)
    for file in (source / MORE_TEMPLATES).glob("*.jinja"):
        (target / MORE_TEMPLATES).mkdir(exist_ok=True)
        shutil.copyfile(file, target / MORE_TEMPLATES / file.name)
        sync(target / MORE_TEMPLATES / file.name)


def few(items: list[str], most: int = 8) -> str:
    """Return the first items in a line, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
