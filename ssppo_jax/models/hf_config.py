"""Hugging Face `config.json` <-> `Arch`.

A field that would change the model's numbers and is not implemented is an error, never ignored, and
so is a field that is not known: a model that loads and is slightly wrong costs more than one that
does not load."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from ssppo_jax.errors import ConfigError
from ssppo_jax.models.arch import Arch, LinearScaling, Llama3Scaling
from ssppo_jax.models.family import FAMILIES, Family

SILU, GELU_TANH = ("silu", "swish"), ("gelu_pytorch_tanh",)
FULL, SLIDING = "full_attention", "sliding_attention"
_REQUIRED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
)  # fmt: skip
_READ = {
    *_REQUIRED, "model_type", "num_key_value_heads", "head_dim", "hidden_act",
    "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters",
    "partial_rotary_factor", "tie_word_embeddings", "attention_bias", "mlp_bias",
    "attention_dropout", "quantization_config", "bos_token_id", "eos_token_id",
}  # fmt: skip
_READ_BY = {  # further fields, by what a family has
    "windows_all": {"sliding_window"},
    "windows_some": {"sliding_window", "layer_types", "use_sliding_window", "max_window_layers"},
    "gemma": {"hidden_activation", "query_pre_attn_scalar", "use_bidirectional_attention"},
    "softcaps": {"attn_logit_softcapping", "final_logit_softcapping"},
    "local_rope": {"rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"},
}
# Fields that say how a model was made or is run, and change none of its numbers here.
_IDLE = {
    "architectures", "auto_map", "cache_implementation", "dtype", "id2label", "initializer_range",
    "is_llama_config", "label2id", "num_labels", "pad_token_id", "problem_type", "torch_dtype",
    "transformers.js_config", "transformers_version", "use_cache", "_attn_implementation",
    "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "unsloth_fixed",
    "unsloth_version",
}  # fmt: skip
_IDLE_AT = {"pretraining_tp": 1}  # harmless at this value only


def arch_from_hf(config: dict[str, Any]) -> Arch:
    """Return the `Arch` that a transformers 4 or 5 `config.json` describes.

    transformers 5 nests rope settings in `rope_parameters`; 4 writes `rope_theta` and
    `rope_scaling`. Both are read. Fields left out take transformers' own defaults for that model
    type.

    Raises:
      ConfigError: every missing, unknown or unsupported field at once, with what is supported
        instead.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        hint = " (of gemma3, the text models: gemma3_text)" if model_type == "gemma3" else ""
        raise ConfigError(
            f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}{hint}. "
            "Use a model of one of these families, or add it as CONTRIBUTING.md describes"
        )
    missing = [key for key in _REQUIRED if config.get(key) is None]
    if missing:
        raise ConfigError(
            f"config.json ({model_type}) lacks {', '.join(missing)}; is it a complete model config?"
        )
    wrong = list(_of_another_kind(config))
    if wrong:
        raise ConfigError("\n".join(wrong))
    family = FAMILIES[model_type]
    rope, local = _ropes(config, family)
    problems = list(_unsupported(config, family, rope, local))
    if problems:
        raise ConfigError("\n".join(problems))
    heads = config["num_attention_heads"]
    layers = _sliding_layers(config, family)
    return Arch(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=_field(config, "num_key_value_heads") or heads,
        head_dim=_field(config, "head_dim") or config["hidden_size"] // max(heads, 1),
        mlp_dim=config["intermediate_size"],
        rope_theta=float(rope["rope_theta"]),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        max_positions=_field(config, "max_position_embeddings"),
        tie_embeddings=bool(_field(config, "tie_word_embeddings")),
        model_type=model_type,
        bos_id=next(iter(id_tuple(_field(config, "bos_token_id"))), None),
        eos_ids=id_tuple(_field(config, "eos_token_id")),
        rope_scaling=_scaling(rope),
        sliding_window=_field(config, "sliding_window") if layers else None,
        sliding_layers=layers,
        local_rope_theta=float(local["rope_theta"]) if family.local_rope else None,
        query_pre_attn_scalar=_field(config, "query_pre_attn_scalar"),
        attn_softcap=_number(_field(config, "attn_logit_softcapping")),
        final_softcap=_number(_field(config, "final_logit_softcapping")),
        num_labels=_labels(config, family),
    )


def arch_to_hf(arch: Arch) -> dict[str, Any]:
    """Return the `config.json` of an `Arch`, the inverse of `arch_from_hf`."""
    family, act = arch.family, "gelu_pytorch_tanh" if arch.family.gemma else "silu"
    config: dict[str, Any] = {
        "architectures": [family.classifier if arch.num_labels else family.architecture],
        "model_type": arch.model_type,
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.hidden_size,
        "intermediate_size": arch.mlp_dim,
        "num_hidden_layers": arch.num_layers,
        "num_attention_heads": arch.num_heads,
        "num_key_value_heads": arch.num_kv_heads,
        "head_dim": arch.head_dim,
        "hidden_activation" if family.gemma else "hidden_act": act,
        "max_position_embeddings": arch.max_positions,
        "rms_norm_eps": arch.norm_eps,
        "rope_theta": arch.rope_theta,
        "tie_word_embeddings": arch.tie_embeddings,
        "attention_dropout": 0.0,
        "bos_token_id": arch.bos_id,
        "eos_token_id": arch.eos_ids[0] if len(arch.eos_ids) == 1 else (list(arch.eos_ids) or None),
    }
    if arch.num_labels:
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(arch.num_labels)}
        config["label2id"] = {label: int(i) for i, label in config["id2label"].items()}
    if arch.model_type == "llama":
        config |= {"attention_bias": False, "mlp_bias": False}
    if arch.rope_scaling is not None:
        config["rope_scaling"] = _scaling_to_hf(arch.rope_scaling)
    if family.gemma:
        config["query_pre_attn_scalar"] = arch.query_pre_attn_scalar
    if family.softcaps:
        config |= {
            "attn_logit_softcapping": arch.attn_softcap,
            "final_logit_softcapping": arch.final_softcap,
        }
    if family.local_rope:
        config["rope_local_base_freq"] = arch.local_rope_theta
    return config | _windows_to_hf(arch)


def id_tuple(value: int | list[int] | tuple[int, ...] | None) -> tuple[int, ...]:
    """Return `eos_token_id` in any of its spellings as a tuple without repeats, order kept."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(dict.fromkeys(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


# What a field must be to be read at all: words, test, fields.
_KINDS: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "a whole number",
        lambda value: type(value) is int,
        (
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
            *("sliding_window", "max_window_layers", "sliding_window_pattern", "num_labels"),
        ),
    ),
    (
        "a number",
        _is_number,
        (
            *("rope_theta", "rope_local_base_freq", "rms_norm_eps", "partial_rotary_factor"),
            *("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
            *("factor", "low_freq_factor", "high_freq_factor", "attention_dropout"),
            "original_max_position_embeddings",
        ),
    ),
    (
        "a token id or a list of them",
        lambda value: _is_list_of(int, value if isinstance(value, list) else [value]),
        ("bos_token_id", "eos_token_id"),
    ),
    ("a name", lambda value: isinstance(value, str), ("rope_type", "type")),
    ("a list of names", functools.partial(_is_list_of, str), ("architectures", "layer_types")),
    (
        "a JSON object",
        lambda value: isinstance(value, dict),
        ("rope_parameters", "rope_scaling", FULL, SLIDING, "id2label"),
    ),
)


def _of_another_kind(config: dict, inside: str = "") -> Iterator[str]:
    """List fields, those of nested objects included, that hold something that cannot be read."""
    for words, right, fields in _KINDS:
        for key in fields:
            value = config.get(key)
            if value is None:
                continue
            if not right(value):
                yield f"{inside}{key} must be {words}, not {value!r:.60}"
            elif isinstance(value, dict) and key != "id2label":
                yield from _of_another_kind(value, f"{inside}{key}.")


def _labels(config: dict, family: Family) -> int:
    """Return the outputs of a classification head; 0 without one."""
    if family.classifier not in (config.get("architectures") or ()):
        return 0
    return len(config.get("id2label") or ()) or config.get("num_labels") or 2  # their default


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _field(config: dict, key: str) -> Any:
    """Return the field, or transformers' default where it is left out; a null stays null."""
    return config[key] if key in config else FAMILIES[config["model_type"]].omitted.get(key)


# ---- rotary positions ----------------------------------------------------------------------------


def _ropes(config: dict, family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rope settings of ordinary layers and of layers with a window, each a flat dict with rope_type
    and rope_theta.

    `rope_parameters` (transformers 5; by layer type in gemma3_text) or `rope_theta` +
    `rope_scaling` (4)."""
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not family.local_rope:
        return _rope(nested, _field(config, "rope_theta")), {}
    own: dict = nested
    local: dict = {}
    if FULL in nested or SLIDING in nested:
        own, local = nested.get(FULL) or {}, nested.get(SLIDING) or {}
    local_theta = _field(config, "rope_local_base_freq")
    return _rope(own, _field(config, "rope_theta")), _rope(local, local_theta)


def _rope(settings: dict, theta: float | None) -> dict[str, Any]:
    rope = {key: value for key, value in settings.items() if value is not None}
    rope.setdefault("rope_theta", 10000.0 if theta is None else theta)
    rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    return rope


def _scaling(rope: dict) -> Llama3Scaling | LinearScaling | None:
    if rope["rope_type"] == "default":
        return None
    if rope["rope_type"] == "linear":
        return LinearScaling(float(rope["factor"]))
    return Llama3Scaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_positions=int(rope["original_max_position_embeddings"]),
    )


def _scaling_to_hf(scaling: Llama3Scaling | LinearScaling) -> dict[str, Any]:
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_positions,
    }


# ---- sliding windows -----------------------------------------------------------------------------


def _sliding_layers(config: dict, family: Family) -> tuple[int, ...]:
    """Return the layers that look back over a window only."""
    count, model_type = config["num_hidden_layers"], config["model_type"]
    qwen = model_type.startswith("qwen")
    if family.windows == "none" or _field(config, "sliding_window") is None:
        return ()
    if family.windows == "all":
        return tuple(range(count))
    if qwen and not config.get("use_sliding_window", False):
        return ()
    types = config.get("layer_types")
    if types is not None:
        return tuple(i for i, kind in enumerate(types) if kind == SLIDING)
    if qwen:
        return tuple(range(config.get("max_window_layers", 28), count))
    every = 2 if model_type == "gemma2" else config.get("sliding_window_pattern", 6)
    return tuple(i for i in range(count) if (i + 1) % every)


def _windows_to_hf(arch: Arch) -> dict[str, Any]:
    kind = arch.family.windows
    if kind == "none":
        return {}
    window: dict[str, Any] = {"sliding_window": arch.sliding_window}
    if kind == "all":
        return window
    window["layer_types"] = [
        SLIDING if i in arch.sliding_layers else FULL for i in range(arch.num_layers)
    ]
    if arch.model_type.startswith("qwen"):
        window |= {
            "use_sliding_window": bool(arch.sliding_layers),
            "max_window_layers": arch.num_layers,
        }
    return window


# ---- what is not supported -----------------------------------------------------------------------


def _unsupported(config: dict, family: Family, rope: dict, local: dict):
    """List fields that change the model's numbers and that this decoder does not implement."""
    yield from _unknown(config, family)
    # transformers reads a gemma's hidden_activation only; early exports have another hidden_act
    # beside it
    accepted = GELU_TANH if family.gemma else SILU
    act = config.get("hidden_activation" if family.gemma else "hidden_act") or accepted[0]
    if act not in accepted:
        yield (
            f"activation {act!r} is not supported for {config['model_type']}; supported:"
            f" {accepted[0]}"
        )
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key, False):
            yield f"{key} true is not supported; supported: false (qwen2 has its own q/k/v biases)"
    if config.get("use_bidirectional_attention"):
        yield (
            "use_bidirectional_attention true is not supported; supported: false (causal attention)"
        )
    if config.get("attention_dropout", 0.0):
        yield (
            f"attention_dropout {config['attention_dropout']} is not supported; set it to 0.0 in"
            " config.json"
        )
    partial = config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        yield f"partial_rotary_factor {partial} is not supported; supported: 1.0"
    if config.get("quantization_config"):
        yield (
            "quantization_config: quantised weights are not supported; use the unquantised model,"
            " or a .gguf file"
        )
    yield from _rope_problems(rope)
    if local and local["rope_type"] != "default":
        yield (
            f"rope scaling type {local['rope_type']!r} of {SLIDING} layers is not supported;"
            " supported: none"
        )
    types = config.get("layer_types")
    wrong = sorted(set(types or ()) - {FULL, SLIDING})
    if wrong:
        yield f"layer_types {wrong} are not supported; supported: {FULL}, {SLIDING}"
    if types is not None and len(types) != config["num_hidden_layers"]:
        yield (
            f"layer_types names {len(types)} layers, num_hidden_layers says"
            f" {config['num_hidden_layers']}"
        )


def _unknown(config: dict, family: Family):
    has = [f"windows_{family.windows}"]
    has += [name for name in ("gemma", "softcaps", "local_rope") if getattr(family, name)]
    known = _READ.union(*(_READ_BY.get(name, set()) for name in has))
    for key, value in config.items():
        if key in known or key in _IDLE or value is None or value is False:
            continue
        if key in _IDLE_AT and value == _IDLE_AT[key]:
            continue
        yield (
            f"field {key!r} ({value!r}) is not known for {config['model_type']}; if it does not"
            " change the model's numbers, remove it from config.json"
        )


def _rope_problems(rope: dict):
    if any(isinstance(value, dict) for value in rope.values()):
        yield (
            "rope_parameters per layer type are not supported here; supported: one set for every"
            " layer"
        )
        return
    kind = rope["rope_type"]
    if kind not in ("default", "linear", "llama3"):
        yield (
            f"rope scaling type {kind!r} is not supported; supported: none (default), linear,"
            " llama3"
        )
    needed = {"linear": ("factor",)}.get(
        kind, ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    lacking = [key for key in needed if key not in rope]
    if kind in ("linear", "llama3") and lacking:
        yield f"rope scaling {kind} lacks {', '.join(lacking)}"
