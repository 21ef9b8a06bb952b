"""The table of our parameter paths, Hugging Face tensor names and GGUF tensor names.

Axes are written as letters: V vocabulary, D width, H / G query / key-value heads, E head dim, F mlp
width, C labels. A Hugging Face `nn.Linear` stores `[out, in]`; ours are `[in, out]` with heads as
real axes: `(H E) D` becomes `D H E`. Layer tensors are per layer there (`{n}`) and stacked on axis
0 here."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from ssppo_jax.models.arch import Arch


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One row of the table: a tensor's three names, its axes here and in Hugging Face's files."""

    path: str
    hf: str
    gguf: str  # "": its families are not read from GGUF
    ours: str
    theirs: str
    of: str = ""  # what a model must have, see `leaves`; "": every model

    @property
    def stacked(self) -> bool:
        return "{n}" in self.hf


def _layer(path: str, hf: str, gguf: str, *axes: str) -> Leaf:
    """Make the row of a tensor that every layer has; `gguf` may be ""."""
    return Leaf(f"layers/{path}", f"model.layers.{{n}}.{hf}", gguf and f"blk.{{n}}.{gguf}", *axes)


LEAVES = (
    # our path, Hugging Face name, GGUF name, our axes, their axes, of which models
    Leaf("embed/embedding", "model.embed_tokens.weight", "token_embd.weight", "V D", "V D"),
    _layer("attn_norm/scale", "input_layernorm.weight", "attn_norm.weight", "D", "D"),
    _layer("attn/q/kernel", "self_attn.q_proj.weight", "attn_q.weight", "D H E", "(H E) D"),
    _layer("attn/q/bias", "self_attn.q_proj.bias", "attn_q.bias", "H E", "(H E)", "qkv_bias"),
    _layer("attn/q_norm/scale", "self_attn.q_norm.weight", "", "E", "E", "qk_norm"),
    _layer("attn/k/kernel", "self_attn.k_proj.weight", "attn_k.weight", "D G E", "(G E) D"),
    _layer("attn/k/bias", "self_attn.k_proj.bias", "attn_k.bias", "G E", "(G E)", "qkv_bias"),
    _layer("attn/k_norm/scale", "self_attn.k_norm.weight", "", "E", "E", "qk_norm"),
    _layer("attn/v/kernel", "self_attn.v_proj.weight", "attn_v.weight", "D G E", "(G E) D"),
    _layer("attn/v/bias", "self_attn.v_proj.bias", "attn_v.bias", "G E", "(G E)", "qkv_bias"),
    _layer("attn/o/kernel", "self_attn.o_proj.weight", "attn_output.weight", "H E D", "D (H E)"),
    # Hugging Face's "post attention" norm is the one before the mlp, except in families that have
    # a norm behind attention: there it is that one.
    _layer("attn_post_norm/scale", "post_attention_layernorm.weight", "", "D", "D", "post_norms"),
    _layer(
        "mlp_norm/scale",
        "post_attention_layernorm.weight",
        "ffn_norm.weight",
        "D",
        "D",
        "pre_norms_only",
    ),
    _layer("mlp_norm/scale", "pre_feedforward_layernorm.weight", "", "D", "D", "post_norms"),
    _layer("mlp_post_norm/scale", "post_feedforward_layernorm.weight", "", "D", "D", "post_norms"),
    _layer("mlp/gate/kernel", "mlp.gate_proj.weight", "ffn_gate.weight", "D F", "F D"),
    _layer("mlp/up/kernel", "mlp.up_proj.weight", "ffn_up.weight", "D F", "F D"),
    _layer("mlp/down/kernel", "mlp.down_proj.weight", "ffn_down.weight", "F D", "D F"),
    Leaf("norm/scale", "model.norm.weight", "output_norm.weight", "D", "D"),
    Leaf("head/kernel", "lm_head.weight", "output.weight", "D V", "V D", "head"),
    Leaf("score/kernel", "score.weight", "", "D C", "C D", "score"),
)


def leaves(arch: Arch) -> tuple[Leaf, ...]:
    """Return the rows that this architecture has."""
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
    """Return the Hugging Face tensors that make up a leaf, layer by layer."""
    return _by_layer(leaf.hf, leaf, arch)


def gguf_names(leaf: Leaf, arch: Arch) -> tuple[str, ...]:
    """Return the GGUF tensors that make up a leaf, layer by layer."""
    return _by_layer(leaf.gguf, leaf, arch)


def _by_layer(name: str, leaf: Leaf, arch: Arch) -> tuple[str, ...]:
    return tuple(name.format(n=n) for n in range(arch.num_layers)) if leaf.stacked else (name,)


def differences(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], says: str
) -> list[str]:
    """List by name what is missing, unknown or of another shape than `says` has it."""
    return [
        *(f"missing {name}" for name in sorted(wanted.keys() - found.keys())),
        *(f"unknown {name}" for name in sorted(found.keys() - wanted.keys())),
        *(
            f"{name} has shape {found[name]}, {says} {wanted[name]}"
            for name in sorted(wanted.keys() & found.keys())
            if found[name] != wanted[name]
        ),
    ]


def shape(leaf: Leaf, arch: Arch) -> tuple[int, ...]:
    """Return the leaf's shape in our tree, layers included."""
    own = tuple(sizes(arch)[letter] for letter in leaf.ours.split())
    return (arch.num_layers, *own) if leaf.stacked else own


def hf_shape(leaf: Leaf, arch: Arch) -> tuple[int, ...]:
    """Return the shape of one Hugging Face tensor of this leaf."""
    return tuple(
        math.prod(sizes(arch)[letter] for letter in group) for group in _groups(leaf.theirs)
    )


def from_hf(tensor: np.ndarray, leaf: Leaf, arch: Arch) -> np.ndarray:
    """Bring one layer's tensor from axes `leaf.theirs` to `leaf.ours` (a view where possible)."""
    letters = [letter for group in _groups(leaf.theirs) for letter in group]
    split = tensor.reshape([sizes(arch)[letter] for letter in letters])
    return split.transpose([letters.index(letter) for letter in leaf.ours.split()])


def to_hf(tensor: np.ndarray, leaf: Leaf, arch: Arch) -> np.ndarray:
    """Bring one layer's tensor from axes `leaf.ours` to `leaf.theirs`, contiguous."""
    letters = leaf.ours.split()
    order = [letters.index(letter) for group in _groups(leaf.theirs) for letter in group]
    return np.ascontiguousarray(tensor.transpose(order).reshape(hf_shape(leaf, arch)))


def sizes(arch: Arch) -> dict[str, int]:
    """Return the number that each letter stands for."""
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
    """Parse '(H E) D' into [['H', 'E'], ['D']]."""
    return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\w", axes)]
