"""Read a PairRM folder (`llm-blender/PairRM-hf`) into `models.deberta`, without torch or pickle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssppo_jax.models.deberta import Ranker, RankerArch
from ssppo_jax.weights.table import (
    EncoderError,
    Row,
    assemble,
    dense,
    norm,
    number_problems,
    read_json,
    read_tensors,
    weights_file,
)

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
_NEEDED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "layer_norm_eps", "position_buckets", "n_tasks", "source_prefix_id", "cand1_prefix_id",
    "cand2_prefix_id",
)  # fmt: skip


class LoadedRanker(NamedTuple):
    """A ranker ready to apply."""

    ranker: Ranker
    params: dict  # nested, float32 NumPy; layers stacked on axis 0


def load_ranker(folder: Path, *, dtype: str = "float32") -> LoadedRanker:
    """Read configuration and weights, all of the model's tensors and none that is unknown.

    Raises EncoderError for pickled weights, settings that are not implemented, and tensors that do
    not fit."""
    ranker = Ranker(read_arch(folder), dtype)
    tokens, length = jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    wanted = jax.eval_shape(ranker.init, jax.random.key(0), tokens, length)["params"]
    rows = ROWS
    if not ranker.arch.norm_positions:
        rows = tuple(row for row in ROWS if not row.path.startswith("positions_norm"))
    tensors = read_tensors(weights_file(folder))
    params, _ = assemble(rows, ranker.arch.layers, tensors, wanted, folder, IGNORABLE)
    return LoadedRanker(ranker, params)


def read_arch(folder: Path) -> RankerArch:
    """Return the architecture of a folder.

    Raises EncoderError naming each setting that is missing or not implemented."""
    config = read_json(folder / "config.json", dict)
    problems = [f"{key} is missing" for key in _NEEDED if config.get(key) is None]
    given = {key: config[key] for key in _NEEDED if config.get(key) is not None}
    wrong = list(number_problems(given))
    if not wrong and not problems and config["hidden_size"] % config["num_attention_heads"]:
        wrong.append("hidden_size is not a multiple of num_attention_heads")
    problems += wrong
    problems += _unsupported(config)
    if problems:
        raise EncoderError(
            f"{folder} is not a PairRM model that can be read ({'; '.join(problems)}). The original"
            " llm-blender/PairRM has no model config; use the same weights from"
            " 'llm-blender/PairRM-hf', or a copy of it"
        )
    return RankerArch(
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp=config["intermediate_size"],
        buckets=config["position_buckets"],
        reach=_reach(config),
        norm_eps=config["layer_norm_eps"],
        tasks=config["n_tasks"],
        source_id=config["source_prefix_id"],
        first_id=config["cand1_prefix_id"],
        second_id=config["cand2_prefix_id"],
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
