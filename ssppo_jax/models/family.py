"""What a `model_type` computes, apart from its sizes: one row per family of decoders.

Every family is the one `Decoder` with some of these switches on. A family is added by a row here,
its tensors' names in `weights/names.py` and a case in the golden files (CONTRIBUTING.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Family:
    """The switches of one `model_type`, and what transformers assumes where its config.json leaves
    a field out."""

    architecture: str  # the class that transformers builds
    classifier: str  # and with a classification head
    omitted: Mapping[str, Any]
    qkv_bias: bool = False
    qk_norm: bool = False  # RMSNorm over the head dim of queries and keys, before they are rotated
    post_norms: bool = False  # a second norm behind attention and the mlp, before each is added
    # norms scale by 1 + weight in float32, embeddings by sqrt(D), and the mlp's gate is GELU (tanh)
    gemma: bool = False
    # which layers may look back over a sliding window only: none, all, or some (layer_types)
    windows: str = "none"
    softcaps: bool = False  # config.json may bound attention scores and logits: cap * tanh(x / cap)
    local_rope: bool = False  # layers with a window have a RoPE base of their own


_LLAMA = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
}
_QWEN = {
    "bos_token_id": None,
    "eos_token_id": None,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
}
_GEMMA = {
    "bos_token_id": 2,
    "eos_token_id": 1,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
}
_GEMMA2 = {
    "max_position_embeddings": 8192,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA3 = {"max_position_embeddings": 131072, "rope_theta": 1e6, "rope_local_base_freq": 1e4}

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", "LlamaForSequenceClassification", _LLAMA),
    "mistral": Family(
        "MistralForCausalLM",
        "MistralForSequenceClassification",
        _LLAMA
        | {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
        windows="all",
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM", "Qwen2ForSequenceClassification", _QWEN, qkv_bias=True, windows="some"
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        "Qwen3ForSequenceClassification",
        _QWEN | {"head_dim": 128},
        qk_norm=True,
        windows="some",
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "Gemma2ForSequenceClassification",
        _GEMMA | _GEMMA2,
        post_norms=True,
        gemma=True,
        windows="some",
        softcaps=True,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        "Gemma3TextForSequenceClassification",
        _GEMMA | _GEMMA3,
        qk_norm=True,
        post_norms=True,
        gemma=True,
        windows="some",
        softcaps=True,
        local_rope=True,
    ),
}
