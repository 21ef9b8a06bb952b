"""LoRA adapters as PEFT writes them: adapter_config.json and adapter_model.safetensors, which PEFT
and vLLM load."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ssppo_jax.distributed import hosts
from ssppo_jax.models.arch import Arch
from ssppo_jax.models.lora import A, B, Lora
from ssppo_jax.types import PyTree
from ssppo_jax.weights import hf, names

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_adapters(
    adapters: PyTree,
    arch: Arch,
    lora: Lora,
    folder: str | Path,
    *,
    base: str,
    replace: bool = False,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write a PEFT folder; it appears whole or not at all. Of several processes all call it and
    process 0 writes.

    Args:
      adapters: the adapters' leaves, as `models.lora.split` parts them.
      arch: of the model they belong to.
      lora: their rank, alpha and dropout.
      folder: where to; without `replace` it must not exist, or be empty.
      base: the model that they belong to: its folder, or a repo id with an optional '@revision'
        (`base_of`).
      replace: put it in the place of a folder that is there.
      texts: {file name: content} written beside, such as a model card.
    """
    tensors = dict(_exported(adapters, arch))
    if not hosts.is_first():
        return Path(folder)
    name, _, revision = (base, "", "") if Path(base).is_dir() else base.partition("@")
    modules = sorted({re.sub(r".*\.(\w+)\.lora_[AB]\.weight", r"\1", name) for name in tensors})
    with hf.new_folder(folder, replace=replace) as tmp:
        hf.save_tensors(tensors, tmp / WEIGHTS)
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": name,
            "revision": revision or None,
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": modules,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
        hf.write_json(tmp / CONFIG, settings)
        hf.write_texts(tmp, texts)
    return Path(folder)


def base_of(source: str, folder: Path) -> str:
    """Return a model source in words that PEFT knows: a repo id as it is, else the full path.

    Args:
      source: as in `model.source`. PEFT knows neither `embedded:NAME` nor a GGUF file nor a run's
        checkpoint.
      folder: what `weights.source.resolve` made of it, a Hugging Face folder.
    """
    is_repo = ":" not in source and not Path(source).expanduser().exists()
    return source if is_repo else str(folder.resolve())


def _exported(adapters: PyTree, arch: Arch) -> Iterator[tuple[str, np.ndarray]]:
    """Give each layer's A and B by PEFT's name, in the order of the table of names."""
    flat = dict(hf.flatten(adapters))
    for leaf in names.leaves(arch):
        for which, suffix in ((A, "lora_A"), (B, "lora_B")):
            path = leaf.path.removesuffix("kernel") + which
            if path not in flat:
                continue
            rows = hosts.on_host(flat[path])
            for name, row in zip(names.hf_names(leaf, arch), rows, strict=True):
                module = name.removesuffix(".weight")
                yield f"base_model.model.{module}.{suffix}.weight", _theirs(row, which)


def _theirs(row: np.ndarray, which: str) -> np.ndarray:
    """Turn [*inside, r] into [r, in], [r, *outside] into [out, r]: a torch Linear is [out, in]."""
    two = row.reshape(-1, row.shape[-1]) if which == A else row.reshape(row.shape[0], -1)
    return np.ascontiguousarray(two.T)
