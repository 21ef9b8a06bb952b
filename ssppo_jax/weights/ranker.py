"""Read and write PairRM folders (`llm-blender/PairRM-hf`), without torch or pickle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tokenizers import AddedToken, Tokenizer

from ssppo_jax.errors import ConfigError
from ssppo_jax.models.deberta import Ranker, RankerArch
from ssppo_jax.weights.hf import flatten, insert, new_folder, save_tensors, write_json
from ssppo_jax.weights.table import (
    Row,
    assemble,
    dense,
    module_shapes,
    norm,
    number_problems,
    read_json,
    read_tensors,
    read_tokenizer,
)

# begin the prompt and the two responses
MARKERS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")
_MARKER_IDS = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id")

IGNORABLE = re.compile(r"pretrained_model\.embeddings\.position_ids")
_BODY = "pretrained_model"
_LAYER = f"{_BODY}.encoder.layer.{{}}"
ROWS = tuple(
    Row(*row)
    for row in (
        ("word/embedding", f"{_BODY}.embeddings.word_embeddings.weight"),
        *norm("norm", f"{_BODY}.embeddings.LayerNorm"),
        ("positions", f"{_BODY}.encoder.rel_embeddings.weight"),
        *norm("positions_norm", f"{_BODY}.encoder.LayerNorm"),
        *dense("layers/query", f"{_LAYER}.attention.self.query_proj"),
        *dense("layers/key", f"{_LAYER}.attention.self.key_proj"),
        *dense("layers/value", f"{_LAYER}.attention.self.value_proj"),
        *dense("layers/out", f"{_LAYER}.attention.output.dense"),
        *norm("layers/attention_norm", f"{_LAYER}.attention.output.LayerNorm"),
        *dense("layers/up", f"{_LAYER}.intermediate.dense"),
        *dense("layers/down", f"{_LAYER}.output.dense"),
        *norm("layers/mlp_norm", f"{_LAYER}.output.LayerNorm"),
        *dense("head/hidden", "head_layer.1"),
        *dense("head/out", "head_layer.4"),
    )
)
_FIELDS = {  # of RankerArch: their keys in config.json
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "buckets": "position_buckets",
    "norm_eps": "layer_norm_eps",
    "tasks": "n_tasks",
    "source_id": "source_prefix_id",
    "first_id": "cand1_prefix_id",
    "second_id": "cand2_prefix_id",
}


class LoadedRanker(NamedTuple):
    """A ranker ready to apply."""

    ranker: Ranker
    params: dict  # nested, float32 NumPy; layers stacked on axis 0


def load_ranker(folder: Path, *, dtype: str = "float32") -> LoadedRanker:
    """Read configuration and weights, all of the model's tensors and none that is unknown.

    Raises ConfigError for pickled weights, settings that are not implemented, and tensors that do
    not fit."""
    ranker = Ranker(read_arch(folder), dtype)
    params, _ = assemble(_rows(ranker.arch), ranker, read_tensors(folder), folder, IGNORABLE)
    return LoadedRanker(ranker, params)


def _rows(arch: RankerArch) -> tuple[Row, ...]:
    """Return the rows of the table that a model of this shape has."""
    skipped = () if arch.norm_positions else ("positions_norm",)
    return tuple(row for row in ROWS if not row.path.startswith(skipped))


class RankerFolder(NamedTuple):
    """Hold a ranker with what its folder needs beside the weights."""

    loaded: LoadedRanker
    tokenizer: Tokenizer
    config: dict[str, Any]  # config.json


def open_ranker(folder: Path, *, dtype: str = "float32", seed: int = 0) -> RankerFolder:
    """Read a PairRM folder, or give a plain DeBERTa-v2 or -v3 a new head and marker tokens.

    A new head is random (`seed`), and so are the embeddings of markers beyond the model's table.

    Raises ConfigError as `load_ranker`, and for a tokenizer that does not fit."""
    config = read_json(folder / "config.json", dict)
    if config.get("source_prefix_id") is not None:
        loaded = load_ranker(folder, dtype=dtype)
        return RankerFolder(loaded, read_tokenizer(folder, loaded.ranker.arch.vocab_size), config)
    tokenizer = read_tokenizer(folder, config.get("vocab_size") or 0)
    tokenizer.add_special_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    ids = [int(tokenizer.token_to_id(marker) or 0) for marker in MARKERS]  # all were just added
    config |= dict(zip(_MARKER_IDS, ids, strict=True))
    config |= {"n_tasks": 1, "architectures": ["DebertaV2PairRM"]}
    config["vocab_size"] = max(config["vocab_size"], *(i + 1 for i in ids))
    ranker = Ranker(arch_of(config, folder), dtype)
    return RankerFolder(LoadedRanker(ranker, _with_head(folder, ranker, seed)), tokenizer, config)


def _with_head(folder: Path, ranker: Ranker, seed: int) -> dict:
    """Return the parameters of a plain encoder with a new head."""
    rng, prefix = np.random.default_rng(seed), re.compile(r"(deberta\.)?(?=embeddings\.|encoder\.)")
    tensors = {
        prefix.sub(f"{_BODY}.", name, count=1): tensor
        for name, tensor in read_tensors(folder).items()
        if prefix.match(name)
    }
    word = f"{_BODY}.embeddings.word_embeddings.weight"
    if word in tensors and tensors[word].shape[1:] == (ranker.arch.width,):
        more = max(ranker.arch.vocab_size - len(tensors[word]), 0)
        fresh = rng.normal(0, 0.02, (more, ranker.arch.width)).astype(np.float32)
        tensors[word] = np.concatenate([tensors[word], fresh])
    rows = [row for row in _rows(ranker.arch) if not row.path.startswith("head")]
    params, _ = assemble(rows, ranker, tensors, folder, IGNORABLE)
    for path, shape in flatten(module_shapes(ranker)["head"]):
        kernel = path.endswith("kernel")
        value = rng.normal(0, 0.02, shape.shape) if kernel else np.zeros(shape.shape)
        insert(params, f"head/{path}", value.astype(np.float32))
    return params


def save_ranker(params: dict, made: RankerFolder, folder: Path) -> Path:
    """Write parameters as a PairRM folder, which `load_ranker` reads bit for bit.

    Args:
      params: of `made`'s ranker, on the host or on devices.
      made: the ranker they belong to.
      folder: where to; what is there is replaced.
    """
    arch, flat, tensors = made.loaded.ranker.arch, dict(flatten(params)), {}
    for row in _rows(arch):
        whole = np.asarray(jax.device_get(flat[row.path]), np.float32)
        parts = whole if row.stacked else whole[None]
        for name, part in zip(row.names(arch.layers), parts, strict=True):
            tensors[name] = np.ascontiguousarray(part.T if row.transpose else part)
    with new_folder(folder, replace=True) as tmp:
        save_tensors(tensors, tmp / "model.safetensors")
        made.tokenizer.save(str(tmp / "tokenizer.json"))
        write_json(tmp / "config.json", made.config | {"torch_dtype": "float32"})
    return folder


def read_arch(folder: Path) -> RankerArch:
    """Return the architecture of a folder, as `arch_of`."""
    return arch_of(read_json(folder / "config.json", dict), folder)


def arch_of(config: dict[str, Any], folder: Path) -> RankerArch:
    """Return the architecture that a config.json describes; `folder` is for errors.

    Raises ConfigError naming each setting that is missing or not implemented."""
    problems = [f"{key} is missing" for key in _FIELDS.values() if config.get(key) is None]
    given = {key: config[key] for key in _FIELDS.values() if config.get(key) is not None}
    wrong = list(number_problems(given))
    if not wrong and not problems and config["hidden_size"] % config["num_attention_heads"]:
        wrong.append("hidden_size is not a multiple of num_attention_heads")
    problems += wrong
    problems += _unsupported(config)
    if problems:
        raise ConfigError(
            f"{folder} is not a PairRM model that can be read ({'; '.join(problems)}). The original"
            " llm-blender/PairRM has no model config; use the same weights from"
            " 'llm-blender/PairRM-hf', or a copy of it"
        )
    return RankerArch(
        **{field: config[key] for field, key in _FIELDS.items()},
        reach=_reach(config),
        norm_positions="layer_norm" in str(config.get("norm_rel_ebd", "none")),
    )


def _reach(config: dict) -> int:
    """Return the distance at which the buckets end; without one above 0 it is that of the model."""
    reach = config.get("max_relative_positions", -1)
    return reach if reach > 0 else config.get("max_position_embeddings", 512)


def _unsupported(config: dict):
    kinds = config.get("pos_att_type") or []
    kinds = kinds.split("|") if isinstance(kinds, str) else list(map(str, kinds))
    for key in ("max_relative_positions", "max_position_embeddings"):
        if type(config.get(key, 1)) is not int:
            yield f"{key} is {config[key]!r:.60}, not a whole number"
    for key, value, only in (
        ("model_type", config.get("model_type"), "deberta-v2"),
        ("hidden_act", config.get("hidden_act", "gelu"), "gelu"),
        ("relative_attention", config.get("relative_attention", False), True),
        ("share_att_key", config.get("share_att_key", False), True),
        ("pos_att_type", sorted(kinds), ["c2p", "p2c"]),
        ("position_biased_input", config.get("position_biased_input", True), False),
        ("type_vocab_size", config.get("type_vocab_size", 0), 0),
        ("conv_kernel_size", config.get("conv_kernel_size", 0), 0),
    ):
        if value != only:
            yield f"{key} is {value!r}, only {only!r} is implemented"
