"""Nomic BERT against transformers on torch (`tests/golden/make_nomic.py`), from both notations of
its config."""

import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ssppo_jax.errors import ConfigError
from ssppo_jax.weights.encoder import load_encoder, read_arch

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden/nomic.npz")
CONFIG = json.loads(str(GOLDEN["config"]))
TENSORS = {
    name.removeprefix("tensor/"): GOLDEN[name]
    for name in GOLDEN.files
    if name.startswith("tensor/")
}
PUBLISHED = {  # of nomic-ai/nomic-embed-text-v1.5, with this model's sizes
    "activation_function": "swiglu",
    "causal": False,
    "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 640,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "model_type": "nomic_bert",
    "n_embd": 24,
    "n_head": 3,
    "n_inner": 40,
    "n_layer": 3,
    "n_positions": 8192,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "type_vocab_size": 2,
    "use_rms_norm": False,
    "vocab_size": 64,
}


def folder_of(tmp_path, config, without=()):
    tensors = {name: tensor for name, tensor in TENSORS.items() if name not in without}
    (tmp_path / "modules.json").write_text('[{"type": "x.Pooling", "path": ""}]')
    (tmp_path / "config.json").write_text(json.dumps(config | {"pooling_mode": "mean"}))
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("config", [CONFIG, PUBLISHED], ids=["transformers", "published"])
def test_sentence_vectors_equal_transformers(config, tmp_path):
    loaded = load_encoder(str(folder_of(tmp_path, config)))
    assert loaded.ignored == () and loaded.encoder.arch.positions == 640
    found = jax.jit(loaded.encoder.apply)(
        {"params": loaded.params}, GOLDEN["ids"], GOLDEN["lengths"]
    )
    np.testing.assert_allclose(found, GOLDEN["mean"], atol=2e-4, rtol=0)
    alone = jax.jit(loaded.encoder.apply)(
        {"params": loaded.params}, GOLDEN["ids"][2:, :450], GOLDEN["lengths"][2:]
    )
    np.testing.assert_allclose(alone[0], GOLDEN["mean"][2], atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prenorm": True}, "prenorm is True, only False"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"rotary_emb_fraction": 0.5}, "rotary_emb_fraction is 0.5"),
        ({"rotary_scaling_factor": 2}, "rotary_scaling_factor is 2"),
        ({"rotary_emb_base": None}, "no 'rotary_emb_base'"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1000.0}},
            "rope_type 'dynamic'",
        ),
    ],
)
def test_what_is_not_implemented_is_refused(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read_arch(folder_of(tmp_path, PUBLISHED | change))


def test_a_missing_gate_is_named(tmp_path):
    folder = folder_of(tmp_path, CONFIG, without=["encoder.layers.1.mlp.fc12.weight"])
    with pytest.raises(ConfigError, match=r"missing encoder\.layers\.1\.mlp\.fc12\.weight"):
        load_encoder(str(folder))
