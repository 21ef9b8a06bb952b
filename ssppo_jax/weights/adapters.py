"""LoRA adapters as PEFT writes them: adapter_config.json and adapter_model.safetensors, which PEFT and vLLM load."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from ssppo_jax.errors import ConfigError
from ssppo_jax.models.arch import Arch
from ssppo_jax.models.lora import A, B, Lora
from ssppo_jax.types import PyTree
from ssppo_jax.weights import hf, names

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_UNUSUAL = ("use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern")


def save_adapters(adapters: PyTree, arch: Arch, lora: Lora, folder: str | Path, *, base: str) -> Path:
    """Write a PEFT folder; it appears whole or not at all.

    Args:
      adapters: the adapters' leaves, as `models.lora.split` parts them.
      arch: of the model they belong to.
      lora: their rank, alpha and dropout.
      folder: where to; must not exist, or be empty.
      base: what PEFT is told to load them onto.
    """
    tensors = dict(_exported(adapters, arch))
    modules = sorted({re.sub(r".*\.(\w+)\.lora_[AB]\.weight", r"\1", name) for name in tensors})
    with hf.new_folder(folder) as tmp:
        save_file(tensors, tmp / WEIGHTS, metadata={"format": "pt"})
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": modules,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
        hf.write_json(tmp / CONFIG, settings)
    return Path(folder)


def load_adapters(folder: str | Path, arch: Arch) -> tuple[PyTree, Lora]:
    """The adapters of a PEFT folder that fit this model, and their settings.

    Raises:
      ConfigError: no adapters there, of another kind, or tensors that are not of this model.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{folder} has no {CONFIG} and {WEIGHTS}; give a folder that PEFT or this package wrote")
    settings, tensors = hf.read_json(folder / CONFIG), load_file(folder / WEIGHTS)
    unusual = [
        k for k in ("use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern") if settings.get(k)
    ]
    if settings.get("peft_type") != "LORA" or settings.get("bias", "none") != "none" or unusual:
        raise ConfigError(f"{folder}: only plain LoRA without biases is supported ({', '.join(unusual) or settings})")
    tree: PyTree = {}
    for leaf in _targets(arch):
        for which in (A, B):
            found = [tensors.pop(name, None) for name in _names(leaf, which, arch)]
            if all(x is None for x in found):
                continue
            if any(x is None for x in found):
                raise ConfigError(f"{folder}: {leaf.path} has adapters in some layers only")
            path = f"{leaf.path.removesuffix('kernel')}{which}"
            hf.insert(tree, path, np.stack([_ours(x, leaf, which, arch) for x in found]))
    if tensors or not tree:
        raise ConfigError(f"{folder}: not of this model: {', '.join(sorted(tensors)[:5]) or 'no adapters at all'}")
    rank, targets = (
        int(settings["r"]),
        "|".join(sorted({f"{path.rpartition('/')[0]}$" for path, _ in hf.flatten(tree)})),
    )
    return tree, Lora(rank, float(settings["lora_alpha"]), float(settings.get("lora_dropout", 0.0)), targets)


def _targets(arch: Arch) -> list[names.Leaf]:
    return [leaf for leaf in names.leaves(arch) if leaf.stacked and leaf.path.endswith("kernel")]


def _names(leaf: names.Leaf, which: str, arch: Arch) -> list[str]:
    suffix = "lora_A" if which == A else "lora_B"
    modules = [name.removesuffix(".weight") for name in names.hf_names(leaf, arch)]
    return [f"base_model.model.{module}.{suffix}.weight" for module in modules]


def _exported(adapters: PyTree, arch: Arch):
    flat = dict(hf.flatten(adapters))
    for leaf in _targets(arch):
        for which in (A, B):
            path = f"{leaf.path.removesuffix('kernel')}{which}"
            if path in flat:
                for name, row in zip(_names(leaf, which, arch), np.asarray(flat[path]), strict=True):
                    yield name, _theirs(row, which)


def _theirs(row: np.ndarray, which: str) -> np.ndarray:
    """[*inside, r] -> [r, in], or [r, *outside] -> [out, r]: a torch Linear stores [out, in]."""
    two = row.reshape(-1, row.shape[-1]) if which == A else row.reshape(row.shape[0], -1)
    return np.ascontiguousarray(two.T)


def _ours(tensor: np.ndarray, leaf: names.Leaf, which: str, arch: Arch) -> np.ndarray:
    own = tuple(names.sizes(arch)[letter] for letter in leaf.ours.split())
    inside = own[:-1] if leaf.path.endswith("attn/o/kernel") else own[:1]
    shape = (*inside, tensor.shape[0]) if which == A else (tensor.shape[1], *own[len(inside) :])
    return np.ascontiguousarray(tensor.T).reshape(shape)
