"""`Arch`: the frozen record a decoder is built from."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ssppo_jax.errors import ConfigError
from ssppo_jax.models.family import FAMILIES, Family


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
class LinearScaling:
    """Positions divided by `factor` (`rope_type: linear`)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Arch:
    """A decoder: RMSNorm, RoPE (rotate-half), grouped-query attention, gated mlp. Hashable, so
    jit-static.

    What its `model_type` implies (biases, further norms, ...) is its `family`.

    Raises:
      ConfigError: sizes that do not fit together (heads over key-value heads, odd head_dim, ids
        beyond the vocabulary), or settings that the family does not have.
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
    model_type: str = "llama"
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    # of layers without a window, if RoPE differs by layer
    rope_scaling: Llama3Scaling | LinearScaling | None = None
    sliding_window: int | None = None  # tokens a layer looks back over, itself included; None: all
    sliding_layers: tuple[int, ...] = ()  # the layers that the window binds, ascending
    local_rope_theta: float | None = None  # RoPE base of those layers; None: as the others
    query_pre_attn_scalar: float | None = None  # scores are divided by its root; None: head_dim's
    attn_softcap: float | None = None
    final_softcap: float | None = None
    num_labels: int = 0  # outputs of a classification head (a reward model: 1); 0: none

    def __post_init__(self):
        problems = list(_arch_problems(self))
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def reach(self) -> int:
        """Return the positions that the model reads.

        With linear RoPE scaling they are a factor more than `max_position_embeddings` says. Gemma 3
        and llama3 scaling state the scaled number. vLLM reads the fields so too.
        """
        if isinstance(self.rope_scaling, LinearScaling) and not self.family.local_rope:
            return int(self.max_positions * self.rope_scaling.factor)
        return self.max_positions

    @property
    def score_scale(self) -> float:
        """Return the factor of attention scores."""
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5


def tiny_arch(**overrides: Any) -> Arch:
    """Make a model small enough for tests and the smoke config: about 40 thousand parameters."""
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


def _arch_problems(arch: Arch):
    sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    for name in (*sizes, "mlp_dim", "max_positions"):
        value = getattr(arch, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield f"{name} must be a whole number >= 1, got {value!r}"
            return
    if arch.num_heads % arch.num_kv_heads:
        yield f"num_heads {arch.num_heads} must be a multiple of num_kv_heads {arch.num_kv_heads}"
    if arch.rope_scaling is not None and not arch.rope_scaling.factor > 0:
        yield f"the factor of rope scaling must be above 0, got {arch.rope_scaling.factor}"
    if arch.head_dim % 2:
        yield f"head_dim {arch.head_dim} must be even: RoPE rotates pairs"
    softcaps = ("attn_softcap", "final_softcap")
    scalars = ("rope_theta", "norm_eps", "local_rope_theta", "query_pre_attn_scalar")
    for name in scalars + softcaps:
        value = getattr(arch, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            yield f"{name} must be finite and > 0, got {value}"
    if not isinstance(arch.num_labels, int) or arch.num_labels < 0:
        yield f"num_labels must be a whole number >= 0, got {arch.num_labels!r}"
    for token in (*arch.eos_ids, *(() if arch.bos_id is None else (arch.bos_id,))):
        if not 0 <= token < arch.vocab_size:
            yield f"token id {token} (bos or eos) is outside the vocabulary of {arch.vocab_size}"
    if arch.model_type not in FAMILIES:
        yield f"model_type {arch.model_type!r} is not supported; supported: {', '.join(FAMILIES)}"
        return
    yield from _window_problems(arch)
    if (arch.local_rope_theta is not None) != arch.family.local_rope:
        yield (
            f"local_rope_theta {arch.local_rope_theta} does not fit model_type {arch.model_type!r}"
        )
    refused: tuple[str, ...] = () if arch.family.gemma else ("query_pre_attn_scalar",)
    for name in refused if arch.family.softcaps else refused + softcaps:
        if getattr(arch, name) is not None:
            yield f"{name} {getattr(arch, name)} does not fit model_type {arch.model_type!r}"


def _window_problems(arch: Arch):
    window, layers, kind = arch.sliding_window, arch.sliding_layers, arch.family.windows
    if (window is None) != (not layers):
        yield f"sliding_window {window} and sliding_layers {layers}: one without the other"
    if window is not None and window < 1:
        yield f"sliding_window {window} must be at least 1"
    if list(layers) != sorted(set(layers) & set(range(arch.num_layers))):
        yield f"sliding_layers {layers} must ascend within the {arch.num_layers} layers"
    if layers and (kind == "none" or (kind == "all" and len(layers) < arch.num_layers)):
        yield (
            f"sliding_layers {layers} do not fit model_type {arch.model_type!r}: it has windows in"
            f" {kind} layers"
        )
