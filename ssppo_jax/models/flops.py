"""Floating-point operations a model needs, counted from its shape. A multiply-add is two.

XLA's own count sees the body of a scanned layer once, whatever the number of layers; this one does
not. Matrix products alone are counted: norms, activations and softmax are a percent or two beside
them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ssppo_jax.models.arch import Arch


def layer_parameters(arch: Arch) -> int:
    """Count the entries of one layer's matrices."""
    heads = 2 * arch.num_heads + 2 * arch.num_kv_heads  # q and o, k and v
    return arch.hidden_size * (heads * arch.head_dim + 3 * arch.mlp_dim)


def dense(arch: Arch, tokens: float) -> float:
    """Count the operations of all layers' matrices, forward, for so many tokens."""
    return 2.0 * tokens * arch.num_layers * layer_parameters(arch)


def head(arch: Arch, tokens: float) -> float:
    """Count the operations of the logits of so many tokens."""
    return 2.0 * tokens * arch.hidden_size * arch.vocab_size


def attention(
    arch: Arch,
    past: np.ndarray,  # [...] tokens in front of each stretch
    length: np.ndarray,  # [...] tokens of each stretch
) -> float:
    """Count the operations of scores and mixing, forward, of stretches of tokens.

    Layers with a sliding window look no further back than it reaches.
    """
    sliding = len(arch.sliding_layers) if arch.sliding_window else 0
    pairs = (arch.num_layers - sliding) * _pairs(past, length, None)
    if sliding:
        pairs += sliding * _pairs(past, length, arch.sliding_window)
    return 4.0 * pairs * arch.num_heads * arch.head_dim


def _pairs(past: np.ndarray, length: np.ndarray, window: int | None) -> float:
    """Sum over the tokens of every stretch of the keys each one sees, itself included."""
    start, stop = np.asarray(past, float), np.asarray(past, float) + np.asarray(length, float)

    def below(n):  # sum of min(i, window) for i = 1 ... n
        bound = n if window is None else np.minimum(n, window)
        return bound * (bound + 1) / 2 + (n - bound) * bound

    return float(np.sum(below(stop) - below(start)))


def forward(
    arch: Arch,
    prompt: Iterable[int] | np.ndarray,  # [B] tokens
    completion: np.ndarray,  # [B,K] tokens
) -> float:
    """Count the operations of scoring or sampling K completions of each prompt, computed once."""
    prompt, completion = np.asarray(prompt, float), np.asarray(completion, float)
    tokens = prompt.sum() + completion.sum()
    own = attention(arch, prompt[:, None], completion)
    looked = attention(arch, np.zeros_like(prompt), prompt) + own
    return dense(arch, tokens) + looked + head(arch, completion.sum())


def train_step(
    arch: Arch, prompt: np.ndarray, completion: np.ndarray, *, adapters: bool = False
) -> float:
    """Count the operations of forward and backward, without recomputation (`model.remat`).

    Frozen matrices (`adapters`) have no gradient of their own: twice the forward, not thrice."""
    whole = forward(arch, prompt, completion)
    if not adapters:
        return 3.0 * whole
    own = attention(arch, np.asarray(prompt)[:, None], completion)
    looked = attention(arch, np.zeros_like(prompt), prompt) + own
    return 2.0 * whole + looked
