"""Adapters in PEFT's format: names and axes as PEFT means them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import random_adapters

from ssppo_jax.models.arch import tiny_arch
from ssppo_jax.models.lora import Lora, join, merged
from ssppo_jax.weights import hf
from ssppo_jax.weights.adapters import base_of, save_adapters

ARCHES = {
    "llama": tiny_arch(head_dim=6),
    "qwen2": tiny_arch(model_type="qwen2", num_kv_heads=1),
    "gemma2": tiny_arch(model_type="gemma2", query_pre_attn_scalar=8),
}
LORA = Lora(rank=3, alpha=12.0, dropout=0.1)


@pytest.mark.parametrize("kind", ARCHES)
def test_tensors_mean_what_peft_makes_of_them(kind, tmp_path, make_tree):
    """weight + alpha / r * lora_B @ lora_A, per layer, equals our merged export."""
    arch = ARCHES[kind]
    own, tree = make_tree(arch), random_adapters(arch, LORA)
    folder = save_adapters(tree, arch, LORA, tmp_path / "adapters", base="base")
    settings = json.loads((folder / "adapter_config.json").read_text())
    scale = settings["lora_alpha"] / settings["r"]
    adapters = load_file(folder / "adapter_model.safetensors")
    plain = load_file(hf.save_params(own, arch, tmp_path / "own") / "model.safetensors")
    whole = load_file(
        hf.save_params(merged(join(own, tree), LORA.scale), arch, tmp_path / "whole")
        / "model.safetensors"
    )
    touched = {
        name.removeprefix("base_model.model.").rsplit(".", 2)[0] + ".weight" for name in adapters
    }
    for name, weight in plain.items():
        want = weight
        if name in touched:
            a, b = (
                adapters[f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight"]
                for x in "AB"
            )
            assert a.shape == (3, weight.shape[1]) and b.shape == (weight.shape[0], 3)
            want = weight + scale * b @ a
        np.testing.assert_allclose(whole[name], want, atol=1e-4)
    assert len(adapters) == 2 * len(touched) == 2 * 7 * arch.num_layers
    modules = [f"{name}_proj" for name in ("down", "gate", "k", "o", "q", "up", "v")]
    assert settings["target_modules"] == modules


@pytest.mark.parametrize(
    ("source", "name", "revision"),
    [
        ("owner/name", "owner/name", None),
        ("owner/name@v1.2", "owner/name", "v1.2"),
        ("embedded:smollm2", "FOLDER", None),
        ("random:tiny", "FOLDER", None),
        ("local", "FOLDER", None),
        ("model.gguf", "FOLDER", None),
    ],
)
def test_the_base_is_named_in_words_that_peft_knows(source, name, revision, tmp_path, monkeypatch):
    """PEFT hands name and revision to transformers, which takes a repo id or a folder's path."""
    monkeypatch.chdir(tmp_path)
    for folder in ("local", "cache @1/converted"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "model.gguf").touch()
    converted = Path("local") if source == "local" else Path("cache @1/converted")
    base = base_of(source, converted)
    arch = ARCHES["llama"]
    made = save_adapters(random_adapters(arch, LORA), arch, LORA, tmp_path / "a", base=base)
    settings = json.loads((made / "adapter_config.json").read_text())
    want = str(tmp_path / converted) if name == "FOLDER" else name
    assert (settings["base_model_name_or_path"], settings["revision"]) == (want, revision)


def test_only_targets_are_written(tmp_path):
    arch = ARCHES["llama"]
    lora = dataclasses.replace(LORA, targets="attn/[qv]")
    folder = save_adapters(random_adapters(arch, lora), arch, lora, tmp_path / "a", base="b")
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["q_proj", "v_proj"]
    assert len(load_file(folder / "adapter_model.safetensors")) == 2 * 2 * arch.num_layers
