"""Write a Hugging Face folder as one GGUF file, for llama.cpp and what is built on it.

Names and shapes are those of `gguf.convert_gguf`, which reads back files with a tokenizer cut as
smollm's or qwen2's and without llama3 scaling. Vectors (norms and
biases) stay float32, as llama.cpp wants them; matrices have the asked dtype."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ssppo_jax.errors import ConfigError
from ssppo_jax.files import sync, writing
from ssppo_jax.models.arch import Arch, LinearScaling, Llama3Scaling
from ssppo_jax.models.layers import llama3_frequency
from ssppo_jax.weights import hf, names
from ssppo_jax.weights.gguf import (
    BYTE,
    CONTROL,
    NORMAL,
    QWEN2_SPLIT,
    UNKNOWN,
    UNUSED,
    USER,
    permute,
    rotated_heads,
    splitters,
)
from ssppo_jax.weights.source import load_tokenizer

log = logging.getLogger(__name__)

# Families that llama.cpp computes as we do -> their architecture there
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
SPACE = "\u2581"  # SentencePiece's letter for a space
FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}


def save_gguf(folder: str | Path, path: str | Path, *, dtype: str = "source") -> Path:
    """Write the model of a folder, with its tokenizer and chat template, as `path`.

    The file appears whole or not at all.

    Args:
      folder: a model folder (`source.resolve`).
      path: the new file.
      dtype: of the matrices: float32, bfloat16, float16, or source (as the folder has them).

    Raises:
      ConfigError: a family, setting or tokenizer that llama.cpp does not know in this form; numbers
        beyond float16; or a file that is there.
    """
    import gguf

    folder, path = Path(folder), Path(path)
    if path.exists():
        raise ConfigError(f"{path} is there already; remove it, or give another name")
    arch, source = hf.read_arch(folder), hf.stored_dtype(folder)
    _check_family(arch, folder)
    name = str(source) if dtype == "source" else dtype
    if name not in DTYPES:
        raise ConfigError(
            f"{folder} is stored in {name}, not in {', '.join(DTYPES)}; give a --dtype"
        )
    kind = gguf.GGMLQuantizationType[DTYPES[name]]
    temporary = path.with_name(path.name + ".tmp")
    writer = gguf.GGUFWriter(temporary, ARCHITECTURES[arch.model_type])
    _write_settings(writer, arch, gguf)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[name]])
    _write_tokenizer(writer, arch, folder)
    flat = dict(hf.flatten(hf.load_params(folder, arch, dtype=source)))
    with writing(path):
        try:
            for place, shape, _ in _tensors(flat, arch):
                one = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else kind
                size = math.prod(shape) * (4 if one == gguf.GGMLQuantizationType.F32 else 2)
                # a dtype that is not uint8: or the shape would be taken for bytes
                writer.add_tensor_info(place, shape, np.dtype(np.float32), size, raw_dtype=one)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for place, shape, made in _tensors(flat, arch):
                whole = made()
                writer.write_tensor_data(
                    whole if len(shape) == 1 else _in_dtype(whole, kind, place, gguf)
                )
            writer.close()
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        except BaseException:
            writer.close()
            temporary.unlink(missing_ok=True)
            raise
    return path


def _tensors(
    flat: dict[str, Any], arch: Arch
) -> Iterator[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]:
    """Give each tensor's GGUF name, its shape and what makes it, in the file's order."""
    if isinstance(arch.rope_scaling, Llama3Scaling):
        divisors = functools.partial(_llama3_divisors, arch, arch.rope_scaling)
        yield "rope_freqs.weight", (arch.head_dim // 2,), divisors
    for leaf in names.leaves(arch):
        layers = flat[leaf.path] if leaf.stacked else [flat[leaf.path]]
        for name, value in zip(names.gguf_names(leaf, arch), layers, strict=True):
            yield name, names.hf_shape(leaf, arch), functools.partial(_hf_tensor, value, leaf, arch)


def _llama3_divisors(arch: Arch, scaling: Llama3Scaling) -> np.ndarray:  # [E/2] float32
    """Return what llama.cpp divides the frequencies of RoPE by, for Llama 3.1's scaling."""
    plain = arch.rope_theta ** (-np.arange(0, arch.head_dim, 2, dtype=np.float32) / arch.head_dim)
    return np.asarray(plain / llama3_frequency(plain, scaling), np.float32)


def _hf_tensor(value: np.ndarray, leaf: names.Leaf, arch: Arch) -> np.ndarray:
    """Return one tensor in float32 with the axes and the order of rows that llama.cpp wants."""
    whole = names.to_hf(np.asarray(value), leaf, arch).astype(np.float32)
    heads = rotated_heads(arch).get(leaf.path)
    return whole if heads is None else np.ascontiguousarray(permute(whole, heads))


def _in_dtype(value: np.ndarray, kind: Any, name: str, gguf: Any) -> np.ndarray:
    if kind == gguf.GGMLQuantizationType.F16:
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if not np.isfinite(half).all():
            raise ConfigError(f"{name} has numbers beyond float16; give --dtype=bfloat16")
        return half
    return gguf.quantize(value, kind)


def _check_family(arch: Arch, folder: Path) -> None:
    problems = []
    if arch.model_type not in ARCHITECTURES:
        problems.append(f"models of the family {arch.model_type}")
    if arch.num_labels:
        problems.append("a reward model's head")
    if arch.sliding_window is not None:
        problems.append(f"a sliding window ({arch.sliding_window})")
    if arch.model_type == "qwen2" and arch.num_heads * arch.head_dim != arch.hidden_size:
        problems.append("qwen2 with heads that are not as wide together as the model")
    if problems:
        raise ConfigError(
            f"{folder}: {' and '.join(problems)} cannot be written as GGUF here; supported:"
            f" {', '.join(ARCHITECTURES)} that generate text and see all positions."
            " llama.cpp's convert_hf_to_gguf.py may take the folder"
        )


def _write_settings(writer: Any, arch: Arch, gguf: Any) -> None:
    writer.add_type("model")
    writer.add_vocab_size(arch.vocab_size)
    writer.add_context_length(arch.max_positions)
    writer.add_embedding_length(arch.hidden_size)
    writer.add_block_count(arch.num_layers)
    writer.add_feed_forward_length(arch.mlp_dim)
    writer.add_head_count(arch.num_heads)
    writer.add_head_count_kv(arch.num_kv_heads)
    writer.add_key_length(arch.head_dim)
    writer.add_value_length(arch.head_dim)
    writer.add_rope_dimension_count(arch.head_dim)
    writer.add_rope_freq_base(arch.rope_theta)
    writer.add_layer_norm_rms_eps(arch.norm_eps)
    if isinstance(arch.rope_scaling, LinearScaling):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(arch.rope_scaling.factor)


def _write_tokenizer(writer: Any, arch: Arch, folder: Path) -> None:
    """Write the tokens, their kinds, how they merge, the special ids and the chat template."""
    tokenizer = load_tokenizer(folder, vocab_size=arch.vocab_size)
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(
            f"{folder} has no tokenizer.json; load its tokenizer with transformers and save it"
        )
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = stored["model"]
    if model["type"] != "BPE":
        pre_of(stored, folder)  # refuses it
    by_id = {i: (token, NORMAL) for token, i in model["vocab"].items()}
    for token in stored["added_tokens"]:
        by_id[token["id"]] = (token["content"], CONTROL if token["special"] else USER)
    rows = [by_id.get(i, (f"[PAD{i}]", UNUSED)) for i in range(arch.vocab_size)]
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model.get("merges", ())]
    if is_sentencepiece(stored):
        rows = [_as_piece(token, kind, model["unk_token"]) for token, kind in rows]
        scores = piece_scores(model["vocab"], merges, folder)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([scores.get(token, 0.0) for token, _ in rows])
        writer.add_add_space_prefix(True)
        writer.add_unk_token_id(model["vocab"][model["unk_token"]])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_of(stored, folder))
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_list([token for token, _ in rows])
    writer.add_token_types([kind for _, kind in rows])
    writer.add_add_bos_token(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
    ends = dict.fromkeys(arch.eos_ids)
    places = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for place, token in zip(places, ends, strict=False):
        place(token)
    if len(ends) > len(places):
        log.warning("GGUF has places for 3 ends of a response; of %s the first are written", ends)
    if arch.bos_id is not None:
        writer.add_bos_token_id(arch.bos_id)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id < arch.vocab_size:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def is_sentencepiece(stored: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json is SentencePiece's BPE as Llama 2 and Mistral have it.

    Text is not cut before merging, a space is the letter U+2581, and one is put in front of a text
    and behind each special token. What has no token becomes bytes."""
    prefix = [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ]
    return (
        stored["model"]["type"] == "BPE"
        and bool(stored["model"].get("byte_fallback"))
        and not stored["model"].get("ignore_merges")
        and stored["pre_tokenizer"] is None
        and (stored["normalizer"] or {}).get("normalizers") == prefix
    )


def _as_piece(token: str, kind: int, unknown: str) -> tuple[str, int]:
    if token == unknown:
        return token, UNKNOWN
    return token, BYTE if kind == NORMAL and re.fullmatch("<0x[0-9A-F]{2}>", token) else kind


def piece_scores(
    vocab: dict[str, int], merges: list[tuple[str, ...]], folder: Path
) -> dict[str, float]:
    """Return the pieces' scores: of two merges llama.cpp takes that of the higher score.

    The files have no scores, but merges in their order. Both mean the same where all ways to merge
    two tokens to a piece stand together.

    Raises:
      ConfigError: they do not.
    """
    pieces = [left + right for left, right in merges]
    ordered, ways = [piece for piece, _ in itertools.groupby(pieces)], Counter(pieces)
    whole = all(
        sum(piece[:i] in vocab and piece[i:] in vocab for i in range(1, len(piece))) == number
        for piece, number in ways.items()
    )
    if len(ordered) > len(ways) or not whole:
        raise ConfigError(
            f"{folder}: the merges of its tokenizer are not those of a SentencePiece model, which"
            " orders pieces; llama.cpp's convert_hf_to_gguf.py may take the folder"
        )
    return {piece: -float(n) for n, piece in enumerate(ordered)}


def pre_of(stored: dict[str, Any], folder: Path) -> str:
    """Return llama.cpp's name of the rule that cuts text before merging, as tokenizer.json has it.

    Raises:
      ConfigError: no byte-level BPE, or a rule that is not known here.
    """
    from tokenizers import Tokenizer, models

    known = {}
    for name, splitter in (splitters() | {"llama-bpe": llama3_splitter()}).items():
        # llama.cpp does not merge a word of Llama 3 that is a token
        empty = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
        empty.pre_tokenizer = splitter
        known[name] = _rule(json.loads(empty.to_str()))
    found = [name for name, rule in known.items() if rule == _rule(stored)]
    if stored["model"]["type"] != "BPE" or not found:
        kind = stored["model"]["type"]
        raise ConfigError(
            f"{folder}: its tokenizer ({kind}) cuts text as none that is known here by its name in"
            f" llama.cpp; supported: byte-level BPE of {', '.join(known)}, and SentencePiece as in"
            " Llama 2. llama.cpp's convert_hf_to_gguf.py may take the folder"
        )
    return found[0]


def llama3_splitter() -> Any:
    """Return how Llama 3 cuts text: as Qwen2, but with up to three digits together."""
    from tokenizers import Regex, pre_tokenizers

    split = Regex(QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|"))
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _rule(stored: dict[str, Any]) -> Any:
    """Return how a tokenizer.json cuts and merges, without what does not change ids."""

    def bare(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: bare(value) for key, value in node.items() if key != "trim_offsets"}
        return [bare(value) for value in node] if isinstance(node, list) else node

    return bare(stored["pre_tokenizer"]), bool(stored["model"].get("ignore_merges"))
