"""One table between our parameter paths, Hugging Face tensor names and GGUF tensor names, read in
every direction.

Axes are written as letters: V vocabulary, D width, H / G query / key-value heads, E head dim, F mlp
width, C labels. A Hugging Face `nn.Linear` stores `[out, in]`; ours are `[in, out]` with heads as
real axes: `(H E) D` becomes `D H E`. Layer tensors are per layer there (`{n}`) and stacked on axis
0 here."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from ssppo_jax.models.arch import Arch


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One row of the table: the same tensor under three names, and its axes in our layout and in
    Hugging Face's."""

    path: str
    hf: str
    gguf: str  # "": its families are not read from GGUF
    ours: str
    theirs: str
    of: str = ""  # what a model must have, see `leaves`; "": every model

    @property
    def stacked(self) -> bool:
        return "{n}" in self.hf


_LAYER = "model.layers.{n}"
_ATTN, _MLP = f"{_LAYER}.self_attn", f"{_LAYER}.mlp"
LEAVES = tuple(
    Leaf(*row)
    for row in (
        # our path, Hugging Face name, GGUF name, our axes, their axes, of which models
        ("embed/embedding", "model.embed_tokens.weight", "token_embd.weight", "V D", "V D"),
        (
            "layers/attn_norm/scale",
            f"{_LAYER}.input_layernorm.weight",
            "blk.{n}.attn_norm.weight",
            "D",
            "D",
        ),
        (
            "layers/attn/q/kernel",
            f"{_ATTN}.q_proj.weight",
            "blk.{n}.attn_q.weight",
            "D H E",
            "(H E) D",
        ),
        (
            "layers/attn/q/bias",
            f"{_ATTN}.q_proj.bias",
            "blk.{n}.attn_q.bias",
            "H E",
            "(H E)",
            "qkv_bias",
        ),
        ("layers/attn/q_norm/scale", f"{_ATTN}.q_norm.weight", "", "E", "E", "qk_norm"),
        (
            "layers/attn/k/kernel",
            f"{_ATTN}.k_proj.weight",
            "blk.{n}.attn_k.weight",
            "D G E",
            "(G E) D",
        ),
        (
            "layers/attn/k/bias",
            f"{_ATTN}.k_proj.bias",
            "blk.{n}.attn_k.bias",
            "G E",
            "(G E)",
            "qkv_bias",
        ),
        ("layers/attn/k_norm/scale", f"{_ATTN}.k_norm.weight", "", "E", "E", "qk_norm"),
        (
            "layers/attn/v/kernel",
            f"{_ATTN}.v_proj.weight",
            "blk.{n}.attn_v.weight",
            "D G E",
            "(G E) D",
        ),
        (
            "layers/attn/v/bias",
            f"{_ATTN}.v_proj.bias",
            "blk.{n}.attn_v.bias",
            "G E",
            "(G E)",
            "qkv_bias",
        ),
        (
            "layers/attn/o/kernel",
            f"{_ATTN}.o_proj.weight",
            "blk.{n}.attn_output.weight",
            "H E D",
            "D (H E)",
        ),
        # Hugging Face calls the norm before the mlp "post attention", and where there is one behind
        # attention, that
        (
            "layers/attn_post_norm/scale",
            f"{_LAYER}.post_attention_layernorm.weight",
            "",
            "D",
            "D",
            "post_norms",
        ),
        (
            "layers/mlp_norm/scale",
            f"{_LAYER}.post_attention_layernorm.weight",
            "blk.{n}.ffn_norm.weight",
            "D",
            "D",
            "pre_norms_only",
        ),
        (
            "layers/mlp_norm/scale",
            f"{_LAYER}.pre_feedforward_layernorm.weight",
            "",
            "D",
            "D",
            "post_norms",
        ),
        (
            "layers/mlp_post_norm/scale",
            f"{_LAYER}.post_feedforward_layernorm.weight",
            "",
            "D",
            "D",
            "post_norms",
        ),
        (
            "layers/mlp/gate/kernel",
            f"{_MLP}.gate_proj.weight",
            "blk.{n}.ffn_gate.weight",
            "D F",
            "F D",
        ),
        ("layers/mlp/up/kernel", f"{_MLP}.up_proj.weight", "blk.{n}.ffn_up.weight", "D F", "F D"),
        (
            "layers/mlp/down/kernel",
            f"{_MLP}.down_proj.weight",
            "blk.{n}.ffn_down.weight",
            "F D",
            "D F",
        ),
        ("norm/scale", "model.norm.weight", "output_norm.weight", "D", "D"),
        ("head/kernel", "lm_head.weight", "output.weight", "D V", "V D", "head"),
        ("score/kernel", "score.weight", "", "D C", "C D", "score"),
    )
)


def leaves(arch: Arch) -> tuple[Leaf, ...]:
    """The rows that this architecture has."""
    family = arch.family
    has = {
        "": True,
        "qkv_bias": family.qkv_bias,
        "qk_norm": family.qk_norm,
        "post_norms": family.post_norms,
        "pre_norms_only": not family.post_norms,
        "head": not arch.tie_embeddings and not arch.num_labels,
        "score": arch.num_labels > 0,
    }
    return tuple(leaf for leaf in LEAVES if has[leaf.of])


def hf_names(leaf: Leaf, arch: Arch) -> tuple[str, ...]:
    """The Hugging Face tensors that make up a leaf, layer by layer."""
    return (
        tuple(leaf.hf.format(n=n) for n in range(arch.num_layers)) if leaf.stacked else (leaf.hf,)
    )


def shape(leaf: Leaf, arch: Arch) -> tuple[int, ...]:
    """The leaf's shape in our tree, layers included."""
    own = tuple(sizes(arch)[letter] for letter in leaf.ours.split())
    return (arch.num_layers, *own) if leaf.stacked else own


def hf_shape(leaf: Leaf, arch: Arch) -> tuple[int, ...]:
    """The shape of one Hugging Face tensor of this leaf."""
    return tuple(
        math.prod(sizes(arch)[letter] for letter in group) for group in _groups(leaf.theirs)
    )


def from_hf(
    tensor: np.ndarray,
    leaf: Leaf,
    arch: Arch,  # one layer's tensor, axes `leaf.theirs`
) -> np.ndarray:
    """Axes `leaf.theirs` -> `leaf.ours` (a view where possible)."""
    letters = [letter for group in _groups(leaf.theirs) for letter in group]
    split = tensor.reshape([sizes(arch)[letter] for letter in letters])
    return split.transpose([letters.index(letter) for letter in leaf.ours.split()])


def to_hf(
    tensor: np.ndarray,
    leaf: Leaf,
    arch: Arch,  # one layer's tensor, axes `leaf.ours`
) -> np.ndarray:
    """Axes `leaf.ours` -> `leaf.theirs`, contiguous: `from_hf`'s inverse."""
    letters = leaf.ours.split()
    order = [letters.index(letter) for group in _groups(leaf.theirs) for letter in group]
    return np.ascontiguousarray(tensor.transpose(order).reshape(hf_shape(leaf, arch)))


def sizes(arch: Arch) -> dict[str, int]:
    """What the letters stand for."""
    return {
        "V": arch.vocab_size,
        "D": arch.hidden_size,
        "H": arch.num_heads,
        "G": arch.num_kv_heads,
        "E": arch.head_dim,
        "F": arch.mlp_dim,
        "C": arch.num_labels,
    }


def _groups(axes: str) -> list[list[str]]:
    """'(H E) D' -> [['H', 'E'], ['D']]."""
    return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\w", axes)]
