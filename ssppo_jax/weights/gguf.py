"""Convert a llama.cpp GGUF file into a Hugging Face folder (float32), without torch.

Everything comes out of the one file: weights are dequantised by the `gguf` package, the tokenizer
is rebuilt from the metadata. After that the folder is like any other: `hf.load_params` and
`AutoTokenizer.from_pretrained` read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ssppo_jax.errors import ConfigError, DataError, listed
from ssppo_jax.models.arch import Arch, LinearScaling
from ssppo_jax.weights import hf, names

ARCHITECTURES = ("llama", "qwen2")
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def convert_gguf(
    path: str | Path, out_folder: str | Path, *, max_shard_bytes: int = 4 * 2**30
) -> Path:
    """Convert a GGUF file of the llama or qwen2 architecture into a Hugging Face folder of float32
    weights.

    Tensors are dequantised one at a time; a shard is held in memory until it is written. The folder
    appears whole or not at all.

    Raises:
      ConfigError: an architecture, tokenizer, rope scaling or tensor this does not know; one part
        of several; an output folder in use.
      DataError: not a GGUF file, or a damaged one.
    """
    reader = _open(Path(path))
    meta = _Metadata(reader, Path(path))
    _check_whole(meta)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    arch = gguf_arch(meta, tied="output.weight" not in tensors)
    _check_tensors(tensors, arch, meta)
    kinds = {leaf.path: np.dtype(np.float32) for leaf in names.leaves(arch)}
    with hf.new_folder(out_folder) as tmp:
        hf.write_model(tmp, arch, kinds, _dequantised(tensors, arch), max_shard_bytes, {})
        write_tokenizer(meta, tmp)
    return Path(out_folder)


class _Metadata:
    """The key-value header of a GGUF file, with errors that name the file and the key."""

    def __init__(self, reader: Any, path: Path):
        self.reader, self.path = reader, path

    def get(self, key: str) -> Any:
        """Return the value, or None where the file has no such key."""
        field = self.reader.get_field(key)
        try:
            return None if field is None else field.contents()
        except (ValueError, IndexError) as error:
            raise DataError(f"{self.path}: metadata key {key!r} is unreadable: {error}") from None

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise DataError(f"{self.path}: no metadata key {key!r}; the file is incomplete")
        return value

    def number(self, key: str) -> Any:
        """Return the number under a key, or None where the file has no such key."""
        value = self.get(key)
        if value is not None and not isinstance(value, int | float):
            raise ConfigError(
                f"{self.path}: {key} is {value!r:.60}; supported: one number for all layers"
            )
        return value

    def need_number(self, key: str) -> Any:
        self.need(key)
        return self.number(key)

    def token(self, name: str) -> int | None:
        """Return the id of the special token of that name; None where the file has none."""
        key = f"tokenizer.ggml.{name}_token_id"
        value, size = self.number(key), len(self.need("tokenizer.ggml.tokens"))
        if value is not None and not 0 <= value < size:
            raise DataError(f"{self.path}: {key} is {value}, and the file has {size} tokens")
        return value


def gguf_arch(meta: _Metadata, *, tied: bool) -> Arch:
    """Return the `Arch` of the metadata. Files of Mistral models say llama, computed alike.

    Raises:
      ConfigError: an architecture or a setting that is not supported.
    """
    kind = meta.need("general.architecture")
    if kind not in ARCHITECTURES:
        raise ConfigError(
            f"{meta.path}: GGUF architecture {kind!r}; supported: {', '.join(ARCHITECTURES)}"
        )
    heads = meta.need_number(f"{kind}.attention.head_count")
    width = meta.need_number(f"{kind}.embedding_length")
    head_dim = meta.number(f"{kind}.attention.key_length") or width // heads
    problems = "\n  ".join(_unsupported(meta, kind, head_dim))
    if problems:
        raise ConfigError(f"{meta.path}: use the model's Hugging Face folder\n  {problems}")
    # llama.cpp ends a completion at each of them: end of sequence, of turn, of message
    stops = [meta.token(name) for name in ("eos", "eot", "eom")]
    return Arch(
        vocab_size=len(meta.need("tokenizer.ggml.tokens")),
        hidden_size=width,
        num_layers=meta.need_number(f"{kind}.block_count"),
        num_heads=heads,
        num_kv_heads=meta.number(f"{kind}.attention.head_count_kv") or heads,
        head_dim=head_dim,
        mlp_dim=meta.need_number(f"{kind}.feed_forward_length"),
        rope_theta=_shortest(meta.number(f"{kind}.rope.freq_base") or 10000.0),
        norm_eps=_shortest(meta.need_number(f"{kind}.attention.layer_norm_rms_epsilon")),
        max_positions=meta.need_number(f"{kind}.context_length"),
        tie_embeddings=tied,
        model_type=kind,
        bos_id=meta.token("bos"),
        eos_ids=tuple(dict.fromkeys(token for token in stops if token is not None)),
        rope_scaling=_scaling(meta, kind),
    )


def write_tokenizer(meta: _Metadata, folder: Path) -> None:
    """Write tokenizer files that plain `AutoTokenizer.from_pretrained(folder)` loads.

    Raises:
      ConfigError: a tokenizer family that is not known here; a guess would tokenise almost right.
    """
    from transformers import PreTrainedTokenizerFast  # slow to import, and only conversion needs it

    tokens = meta.need("tokenizer.ggml.tokens")
    special = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = meta.token(key)
        if token is not None:
            special[name] = tokens[token]
    if "eos" in special:
        special.setdefault("pad", special["eos"])
    backend = build_tokenizer(meta)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_max_length=meta.need(f"{meta.need('general.architecture')}.context_length"),
        **{f"{name}_token": token for name, token in special.items()},
    )
    wrapped.chat_template = meta.get("tokenizer.chat_template")
    wrapped.save_pretrained(folder)
    _settle_template(folder, wrapped.chat_template)


def build_tokenizer(meta: _Metadata) -> Any:
    """Build a `tokenizers.Tokenizer`: byte-level BPE with the pre-tokenizer the file names."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    model, pre = meta.need("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre")
    known = splitters()
    if model != "gpt2" or pre not in known:
        raise ConfigError(
            f"{meta.path}: tokenizer {model!r} with pre-tokenizer {pre!r}; supported: 'gpt2' with"
            f" {', '.join(map(repr, known))}. Use the model's Hugging Face folder or repo id"
            " instead"
        )
    tokens, kinds = meta.need("tokenizer.ggml.tokens"), meta.need("tokenizer.ggml.token_type")
    if len(tokens) != len(kinds):
        raise DataError(f"{meta.path}: {len(tokens)} tokens and {len(kinds)} token types")
    rows = list(zip(tokens, kinds, strict=True))
    vocab = {token: i for i, (token, kind) in enumerate(rows) if kind != UNUSED}
    merges = [tuple(merge.split(" ")) for merge in meta.need("tokenizer.ggml.merges")]
    try:
        model = models.BPE(vocab=vocab, merges=merges, fuse_unk=False, byte_fallback=False)
    except Exception as error:  # the library raises nothing more specific
        raise DataError(f"{meta.path}: tokens and merges do not fit: {error}") from None
    tokenizer = Tokenizer(model)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = known[pre]
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in rows
            if kind in (CONTROL, USER)
        ]
    )
    return tokenizer


def splitters() -> dict[str, Any]:
    """Return how text is cut before merging, by llama.cpp's names."""
    from tokenizers import Regex, pre_tokenizers

    byte_level, join = pre_tokenizers.ByteLevel, pre_tokenizers.Sequence
    return {
        "smollm": join(
            [pre_tokenizers.Digits(individual_digits=True), byte_level(add_prefix_space=False)]
        ),
        "qwen2": join(
            [
                pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
                byte_level(add_prefix_space=False, use_regex=False),
            ]
        ),
    }


def _settle_template(folder: Path, template: str | None) -> None:
    """Write settings as transformers 4 reads them: it may not know 5's classes or template file."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 4 and 5 both know it
    if template is not None:
        config["chat_template"] = template
    hf.write_json(folder / "tokenizer_config.json", config)


def _open(path: Path) -> Any:
    from gguf import GGUFReader

    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        return GGUFReader(path)
    except Exception as error:  # the reader raises whatever the damaged bytes lead it into
        raise DataError(
            f"{path}: not a readable GGUF file ({type(error).__name__}: {error})"
        ) from None


def _check_whole(meta: _Metadata) -> None:
    """Check that this file is a whole model, not an adapter or one part of a split model."""
    kind = meta.get("general.type") or "model"
    if kind != "model":
        raise ConfigError(
            f"{meta.path} is a GGUF file of type {kind!r}; supported: model. Give the model's own"
            " file"
        )
    count = meta.number("split.count") or 1
    if count > 1:
        part = (meta.number("split.no") or 0) + 1
        raise ConfigError(
            f"{meta.path}: part {part} of a model split into {count} GGUF files, which is not"
            " supported; merge them first (llama.cpp: llama-gguf-split --merge FIRST_PART"
            " WHOLE.gguf), or use the model's Hugging Face folder"
        )


def _scaling(meta: _Metadata, kind: str) -> LinearScaling | None:
    """Return the rope scaling as llama.cpp reads it.

    A factor without a type is linear. Old files have it under `rope.scale_linear`.
    """
    if meta.get(f"{kind}.rope.scaling.type") == "none":
        return None
    keys = ("rope.scaling.factor", "rope.scale_linear")
    factors = [meta.number(f"{kind}.{key}") for key in keys]
    factor = _shortest(next((value for value in factors if value), 1.0))
    return None if factor == 1.0 else LinearScaling(factor)


def _unsupported(meta: _Metadata, kind: str, head_dim: int) -> Iterator[str]:
    """List settings that change the model's numbers and are not read here."""
    scaling = meta.get(f"{kind}.rope.scaling.type")
    if scaling not in (None, "", "linear", "none"):
        yield f"rope scaling {scaling!r} is not supported; supported: none, linear"
    magnitude = meta.number(f"{kind}.rope.scaling.attn_factor")
    if magnitude not in (None, 1.0):
        yield f"{kind}.rope.scaling.attn_factor {magnitude} is not supported; supported: 1"
    rotated = meta.get(f"{kind}.rope.dimension_count")
    if rotated not in (None, head_dim):
        yield f"RoPE on {rotated} of {head_dim} dimensions is not supported; supported: all"
    window = meta.get(f"{kind}.attention.sliding_window")
    if window:
        yield f"a sliding window ({window}) is not supported; supported: none"


def _check_tensors(tensors: dict[str, Any], arch: Arch, meta: _Metadata) -> None:
    wanted = {
        name: names.hf_shape(leaf, arch)
        for leaf in names.leaves(arch)
        for name in names.gguf_names(leaf, arch)
    }
    found = {name: tuple(map(int, reversed(raw.shape))) for name, raw in tensors.items()}
    # unknown may be rope_freqs: Llama 3.1 scaling
    problems = names.differences(found, wanted, "the metadata says")
    if problems:
        shown = "\n  ".join(listed(problems))
        raise ConfigError(
            f"{meta.path}: tensors do not match a {arch.model_type} model of {arch.num_layers}"
            f" layers ({len(problems)} problems; use the model's Hugging Face folder)\n  {shown}"
        )


def _dequantised(tensors: dict[str, Any], arch: Arch) -> Iterator[tuple[str, np.ndarray]]:
    from gguf import dequantize

    heads = rotated_heads(arch)
    for leaf in names.leaves(arch):
        for theirs, ours in zip(
            names.gguf_names(leaf, arch), names.hf_names(leaf, arch), strict=True
        ):
            raw = tensors[theirs]
            try:
                value = dequantize(raw.data, raw.tensor_type).astype(np.float32)
            except NotImplementedError:
                raise ConfigError(
                    f"{theirs} is quantised as {raw.tensor_type.name}, which the gguf package does"
                    " not read; use another quantisation, or the model's Hugging Face folder"
                ) from None
            value = value.reshape(names.hf_shape(leaf, arch))
            if leaf.path in heads:
                value = unpermute(value, heads[leaf.path])
            yield ours, np.ascontiguousarray(value)


def rotated_heads(arch: Arch) -> dict[str, int]:
    """Return the leaves whose rows llama.cpp's converter interleaves, with their heads.

    It does so for what it computes as llama, and not for qwen2."""
    if arch.model_type == "qwen2":
        return {}
    return {"layers/attn/q/kernel": arch.num_heads, "layers/attn/k/kernel": arch.num_kv_heads}


def permute(rows: np.ndarray, heads: int) -> np.ndarray:  # [heads * E, D]
    """Interleave each head's Q or K rows as `unpermute` undoes it."""
    total, width = rows.shape
    halves = rows.reshape(heads, 2, total // heads // 2, width)
    return halves.swapaxes(1, 2).reshape(total, width)


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:  # [heads * E, D]
    """Undo llama.cpp's interleaving of each head's Q and K rows, for its RoPE on neighbours.

    Rotate-half RoPE pairs row i with row i + E/2; the file stores that pair side by side. Skipping
    this leaves text plausible and log-probs wrong."""
    total, width = rows.shape
    pairs = rows.reshape(heads, total // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(total, width)


def _shortest(value: float) -> float:
    """Return the decimal a float32 was written from: 9.999999747378752e-06 -> 1e-05."""
    return float(str(np.float32(value)))
