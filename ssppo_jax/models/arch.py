"""Hugging Face `config.json` <-> `Arch`, the frozen record a decoder is built from.

A config field that would change the model's numbers and is not implemented is an error, never ignored: a model that
loads and is slightly wrong costs more than one that does not load.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ssppo_jax.errors import ConfigError

MODEL_TYPES = ("llama", "mistral", "qwen2")
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}

# What transformers assumes when config.json leaves a field out: (llama, mistral, qwen2).
_OMITTED: dict[str, tuple] = {
    "num_key_value_heads": (None, 8, 32),
    "max_position_embeddings": (2048, 131072, 32768),
    "bos_token_id": (1, 1, None),
    "eos_token_id": (2, 2, None),
    "sliding_window": (None, 4096, 4096),
}
_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's frequency-dependent RoPE scaling (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self):
        if not self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"rope scaling llama3: low_freq_factor {self.low_freq_factor} must be below "
                f"high_freq_factor {self.high_freq_factor}; correct config.json"
            )


@dataclasses.dataclass(frozen=True)
class Arch:
    """A Llama-class decoder: RMSNorm, RoPE (rotate-half), grouped-query attention, SwiGLU. Hashable, so jit-static.

    Raises:
      ConfigError: sizes that do not fit together (heads over key-value heads, odd head_dim, ids beyond the vocabulary).
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    max_positions: int = 2048
    tie_embeddings: bool = False
    qkv_bias: bool = False
    model_type: str = "llama"
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    rope_scaling: Llama3Scaling | None = None
    sliding_window: int | None = None  # kept for export; only a window that never cuts anything is accepted

    def __post_init__(self):
        problems = list(_arch_problems(self))
        if problems:
            raise ConfigError("\n".join(problems))


def arch_from_hf(config: dict[str, Any]) -> Arch:
    """The `Arch` that a transformers 4 or 5 `config.json` describes.

    transformers 5 nests rope settings in `rope_parameters`; 4 writes `rope_theta` and `rope_scaling`. Both are read.
    Fields left out take transformers' own defaults for that model type.

    Raises:
      ConfigError: every missing, unknown or unsupported field at once, with what is supported instead.
    """
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ConfigError(
            f"model_type {model_type!r} is not supported; supported: {', '.join(MODEL_TYPES)}. "
            "Use a model of one of these families, or add it as CONTRIBUTING.md describes"
        )
    missing = [key for key in _REQUIRED if config.get(key) is None]
    if missing:
        raise ConfigError(f"config.json ({model_type}) lacks {', '.join(missing)}; is it a complete model config?")
    rope = _rope(config)
    problems = list(_unsupported(config, rope))
    if problems:
        raise ConfigError("\n".join(problems))
    heads = config["num_attention_heads"]
    return Arch(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=_field(config, "num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        mlp_dim=config["intermediate_size"],
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        max_positions=_field(config, "max_position_embeddings"),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=model_type == "qwen2",
        model_type=model_type,
        bos_id=_first(_field(config, "bos_token_id")),
        eos_ids=id_tuple(_field(config, "eos_token_id")),
        rope_scaling=_llama3(rope),
        sliding_window=_window(config),
    )


def arch_to_hf(arch: Arch) -> dict[str, Any]:
    """The `config.json` of an `Arch`, in a spelling that transformers 4 and 5 both read: `arch_from_hf`'s inverse."""
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[arch.model_type]],
        "model_type": arch.model_type,
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.hidden_size,
        "intermediate_size": arch.mlp_dim,
        "num_hidden_layers": arch.num_layers,
        "num_attention_heads": arch.num_heads,
        "num_key_value_heads": arch.num_kv_heads,
        "head_dim": arch.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": arch.max_positions,
        "rms_norm_eps": arch.norm_eps,
        "rope_theta": arch.rope_theta,
        "tie_word_embeddings": arch.tie_embeddings,
        "attention_dropout": 0.0,
        "bos_token_id": arch.bos_id,
        "eos_token_id": arch.eos_ids[0] if len(arch.eos_ids) == 1 else (list(arch.eos_ids) or None),
    }
    if arch.model_type == "llama":
        config |= {"attention_bias": False, "mlp_bias": False}
    else:
        config["sliding_window"] = arch.sliding_window
    if arch.model_type == "qwen2":
        config["use_sliding_window"] = arch.sliding_window is not None
        config["max_window_layers"] = 0 if arch.sliding_window is not None else arch.num_layers
    if arch.rope_scaling is not None:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": arch.rope_scaling.factor,
            "low_freq_factor": arch.rope_scaling.low_freq_factor,
            "high_freq_factor": arch.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": arch.rope_scaling.original_max_positions,
        }
    return config


def tiny_arch(**overrides: Any) -> Arch:
    """A model small enough for tests and the smoke config: about 40 thousand parameters."""
    sizes: dict[str, Any] = {
        "vocab_size": 256,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "mlp_dim": 64,
        "norm_eps": 1e-5,
        "max_positions": 512,
        "tie_embeddings": True,
        "bos_id": 1,
        "eos_ids": (2,),
    }
    return Arch(**(sizes | overrides))


def id_tuple(value: int | list[int] | tuple[int, ...] | None) -> tuple[int, ...]:
    """`eos_token_id` in any of its spellings as a tuple without repeats, order kept."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(dict.fromkeys(value))


def _first(value: int | list[int] | None) -> int | None:
    return next(iter(id_tuple(value)), None)


def _field(config: dict, key: str) -> Any:
    """The field, or what transformers assumes where it is left out. An explicit null stays null."""
    return config[key] if key in config else _OMITTED[key][MODEL_TYPES.index(config["model_type"])]


def _rope(config: dict) -> dict[str, Any]:
    """`rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling` (4), as one flat dict with `rope_type`."""
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = {key: value for key, value in nested.items() if value is not None}
    if "rope_theta" not in rope and config.get("rope_theta") is not None:
        rope["rope_theta"] = config["rope_theta"]
    rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    return rope


def _llama3(rope: dict) -> Llama3Scaling | None:
    if rope["rope_type"] == "default":
        return None
    return Llama3Scaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_positions=int(rope["original_max_position_embeddings"]),
    )


def _window(config: dict) -> int | None:
    """The sliding window some layer uses, or None."""
    if config["model_type"] == "llama":
        return config.get("sliding_window")
    if config["model_type"] == "mistral":
        return _field(config, "sliding_window")
    layers = config["num_hidden_layers"]
    sliding = config.get("layer_types")
    active = "sliding_attention" in sliding if sliding else config.get("max_window_layers", 28) < layers
    return _field(config, "sliding_window") if config.get("use_sliding_window", False) and active else None


def _unsupported(config: dict, rope: dict):
    """Fields that would change the model's numbers and that this decoder does not implement."""
    act = config.get("hidden_act", config.get("hidden_activation", "silu"))
    if act not in ("silu", "swish"):
        yield f"hidden_act {act!r} is not supported; supported: silu"
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key, False):
            yield f"{key} true is not supported; supported: false (qwen2 has its own q/k/v biases)"
    if config.get("attention_dropout", 0.0):
        yield f"attention_dropout {config['attention_dropout']} is not supported; set it to 0.0 in config.json"
    partial = config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        yield f"partial_rotary_factor {partial} is not supported; supported: 1.0"
    if config.get("quantization_config"):
        yield "quantization_config: quantised weights are not supported; use the unquantised model, or a .gguf file"
    yield from _rope_problems(rope)
    window, longest = _window(config), _field(config, "max_position_embeddings")
    if window is not None and longest is not None and window < longest:
        yield (
            f"sliding_window {window} below max_position_embeddings {longest} is not supported; if your sequences "
            f'never exceed {window} tokens, set "max_position_embeddings": {window} in config.json (same numbers), '
            "else use a model without a sliding window (e.g. Mistral-7B-Instruct-v0.2 or later)"
        )
    types = set(config.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    if types:
        yield f"layer_types {sorted(types)} are not supported; supported: full_attention"


def _rope_problems(rope: dict):
    if any(isinstance(value, dict) for value in rope.values()):
        yield "rope_parameters per layer type are not supported; supported: one set for every layer"
        return
    kind = rope["rope_type"]
    if kind not in ("default", "llama3"):
        yield f"rope scaling type {kind!r} is not supported; supported: none (default), llama3"
    needed = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    lacking = [key for key in needed if key not in rope]
    if kind == "llama3" and lacking:
        yield f"rope scaling llama3 lacks {', '.join(lacking)}"


def _arch_problems(arch: Arch):
    sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
    for name in (*sizes, "max_positions"):
        value = getattr(arch, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield f"{name} must be a whole number >= 1, got {value!r}"
            return
    if arch.num_heads % arch.num_kv_heads:
        yield f"num_heads {arch.num_heads} must be a multiple of num_kv_heads {arch.num_kv_heads}"
    if arch.head_dim % 2:
        yield f"head_dim {arch.head_dim} must be even: RoPE rotates pairs"
    for name in ("rope_theta", "norm_eps"):
        value = getattr(arch, name)
        if not (math.isfinite(value) and value > 0):
            yield f"{name} must be finite and > 0, got {value}"
    if arch.model_type not in MODEL_TYPES:
        yield f"model_type {arch.model_type!r} is not supported; supported: {', '.join(MODEL_TYPES)}"
    if arch.qkv_bias != (arch.model_type == "qwen2"):
        yield f"qkv_bias {arch.qkv_bias} does not fit model_type {arch.model_type!r}: only qwen2 has q/k/v biases"
    for token in (*arch.eos_ids, *(() if arch.bos_id is None else (arch.bos_id,))):
        if not 0 <= token < arch.vocab_size:
            yield f"token id {token} (bos or eos) is outside the vocabulary of {arch.vocab_size}"
