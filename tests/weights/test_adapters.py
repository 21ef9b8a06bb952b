"""Adapters in PEFT's format: names and axes as PEFT means them, out and in again."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ssppo_jax.errors import ConfigError
from ssppo_jax.models.arch import tiny_arch
from ssppo_jax.models.decoder import Decoder, init_params
from ssppo_jax.models.lora import Lora, join, merged, split
from ssppo_jax.weights import hf
from ssppo_jax.weights.adapters import load_adapters, save_adapters

ARCHES = {
    "llama": tiny_arch(head_dim=6),
    "qwen2": tiny_arch(model_type="qwen2", num_kv_heads=1),
    "gemma2": tiny_arch(model_type="gemma2", query_pre_attn_scalar=8),
}
LORA = Lora(rank=3, alpha=12.0, dropout=0.1)


def adapters_of(arch, lora=LORA):
    shapes = split(jax.eval_shape(lambda: init_params(Decoder(arch, lora=lora), jax.random.key(0))))[1]
    rng, tree = np.random.default_rng(0), {}
    for path, leaf in hf.flatten(shapes):
        hf.insert(tree, path, rng.standard_normal(leaf.shape).astype(np.float32))
    return tree


@pytest.mark.parametrize("kind", ARCHES)
def test_out_and_in_again_is_bit_exact(kind, tmp_path):
    arch = ARCHES[kind]
    tree = adapters_of(arch)
    found, lora = load_adapters(save_adapters(tree, arch, LORA, tmp_path / "a", base="base"), arch)
    assert (lora.rank, lora.alpha, lora.dropout) == (3, 12.0, 0.1)
    jax.tree.map(np.testing.assert_array_equal, found, tree)
    assert all(lora.covers(path.rpartition("/")[0]) for path, _ in hf.flatten(tree))


@pytest.mark.parametrize("kind", ARCHES)
def test_tensors_mean_what_peft_makes_of_them(kind, tmp_path, make_tree):
    """weight + alpha / r * lora_B @ lora_A, per layer, equals our merged export."""
    arch = ARCHES[kind]
    own, tree = make_tree(arch), adapters_of(arch)
    folder = save_adapters(tree, arch, LORA, tmp_path / "adapters", base="base")
    settings = json.loads((folder / "adapter_config.json").read_text())
    scale = settings["lora_alpha"] / settings["r"]
    adapters = load_file(folder / "adapter_model.safetensors")
    plain = load_file(hf.save_params(own, arch, tmp_path / "own") / "model.safetensors")
    whole = load_file(
        hf.save_params(merged(join(own, tree), LORA.scale), arch, tmp_path / "whole") / "model.safetensors"
    )
    touched = {name.removeprefix("base_model.model.").rsplit(".", 2)[0] + ".weight" for name in adapters}
    for name, weight in plain.items():
        want = weight
        if name in touched:
            a, b = (adapters[f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight"] for x in "AB")
            assert a.shape == (3, weight.shape[1]) and b.shape == (weight.shape[0], 3)
            want = weight + scale * b @ a
        np.testing.assert_allclose(whole[name], want, atol=1e-4)
    assert len(adapters) == 2 * len(touched) == 2 * 7 * arch.num_layers
    assert settings["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_only_targets_are_written(tmp_path):
    arch = ARCHES["llama"]
    lora = dataclasses.replace(LORA, targets="attn/[qv]")
    folder = save_adapters(adapters_of(arch, lora), arch, lora, tmp_path / "a", base="b")
    assert json.loads((folder / "adapter_config.json").read_text())["target_modules"] == ["q_proj", "v_proj"]
    assert load_adapters(folder, arch)[1].covers("layers/attn/v") and not load_adapters(folder, arch)[1].covers(
        "mlp/up"
    )


def test_what_does_not_fit_is_named(tmp_path):
    arch = ARCHES["llama"]
    with pytest.raises(ConfigError, match=r"has no adapter_config.json"):
        load_adapters(tmp_path, arch)
    folder = save_adapters(adapters_of(arch), arch, LORA, tmp_path / "a", base="b")
    with pytest.raises(ConfigError, match=r"not of this model: base_model.model.model.layers.1"):
        load_adapters(folder, dataclasses.replace(arch, num_layers=1))
    with pytest.raises(ConfigError, match="some layers only"):
        load_adapters(folder, dataclasses.replace(arch, num_layers=3))
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(ConfigError, match=r"only plain LoRA .*use_dora"):
        load_adapters(folder, arch)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"x": np.zeros(1, np.float32)}, folder / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="not of this model: x"):
        load_adapters(folder, arch)
