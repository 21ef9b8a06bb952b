import dataclasses

import pytest

from ssppo_jax.errors import ConfigError
from ssppo_jax.models.arch import Arch, Llama3Scaling, arch_from_hf, arch_to_hf, tiny_arch

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
VARIANTS = [
    tiny_arch(),
    tiny_arch(tie_embeddings=False, num_kv_heads=4, eos_ids=(2, 7)),
    tiny_arch(rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192), rope_theta=5e5, bos_id=None, eos_ids=()),
    tiny_arch(model_type="mistral", sliding_window=512),
    tiny_arch(model_type="qwen2", qkv_bias=True),
    tiny_arch(model_type="qwen2", qkv_bias=True, sliding_window=1024),
]


def config(**changes):
    return arch_to_hf(tiny_arch()) | changes


@pytest.mark.parametrize("arch", VARIANTS)
def test_an_arch_survives_the_hugging_face_spelling(arch):
    assert arch_from_hf(arch_to_hf(arch)) == arch


def test_archs_hash_so_that_jit_can_take_them_as_static():
    assert hash(tiny_arch()) == hash(tiny_arch())
    assert len({*VARIANTS, *VARIANTS}) == len(VARIANTS)


def test_rope_is_read_in_both_spellings():
    old = config(rope_theta=77.0, rope_scaling={"rope_type": "llama3", **LLAMA3})
    older = config(rope_theta=77.0, rope_scaling={"type": "llama3", **LLAMA3})
    new = config(rope_parameters={"rope_type": "llama3", "rope_theta": 77.0, **LLAMA3})
    del new["rope_theta"]
    expected = tiny_arch(rope_theta=77.0, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192))
    assert arch_from_hf(old) == arch_from_hf(older) == arch_from_hf(new) == expected


def test_omitted_fields_mean_what_transformers_means():
    bare = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 32}
    bare["intermediate_size"] = 8
    llama = arch_from_hf(bare | {"model_type": "llama"})
    assert (llama.num_kv_heads, llama.head_dim, llama.max_positions, llama.rope_theta) == (32, 2, 2048, 10000.0)
    assert (llama.bos_id, llama.eos_ids, llama.norm_eps, llama.tie_embeddings) == (1, (2,), 1e-6, False)
    qwen = arch_from_hf(bare | {"model_type": "qwen2"})
    assert (qwen.num_kv_heads, qwen.bos_id, qwen.eos_ids, qwen.qkv_bias) == (32, None, (), True)
    with pytest.raises(ConfigError, match="sliding_window 4096"):  # Mistral's default window is not None
        arch_from_hf(bare | {"model_type": "mistral"})
    assert arch_from_hf(bare | {"model_type": "mistral", "sliding_window": None}).num_kv_heads == 8


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not supported; supported: llama, mistral, qwen2"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_dropout": 0.1}, "attention_dropout 0.1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor 0.25"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn' is not supported; supported: none"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "lacks low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "per layer type"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": "mistral", "sliding_window": 256}, "sliding_window 256"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}, "window 9"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_key_value_heads": 3}, "multiple of num_kv_heads 3"),
        ({"head_dim": 7}, "head_dim 7 must be even"),
        ({"rms_norm_eps": float("nan")}, "norm_eps"),
        ({"eos_token_id": [2, 256]}, "token id 256"),
        ({"num_hidden_layers": 0}, "num_layers"),
    ],
)
def test_a_field_that_would_change_the_numbers_is_refused_by_name(changes, named):
    with pytest.raises(ConfigError, match=named):
        arch_from_hf(config(**changes))


def test_every_unsupported_field_is_reported_at_once():
    with pytest.raises(ConfigError) as error:
        arch_from_hf(config(hidden_act="relu", mlp_bias=True, rope_scaling={"rope_type": "dynamic"}))
    assert len(str(error.value).splitlines()) == 3


def test_windows_without_effect_are_accepted():
    assert arch_from_hf(config(model_type="mistral", sliding_window=512)).sliding_window == 512
    idle = config(model_type="qwen2", use_sliding_window=False, sliding_window=4, max_window_layers=0)
    assert arch_from_hf(idle).sliding_window is None
    last = config(model_type="qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=2)
    assert arch_from_hf(last).sliding_window is None


def test_an_arch_is_checked_wherever_it_is_made():
    with pytest.raises(ConfigError, match="only qwen2"):
        Arch(**{**dataclasses.asdict(tiny_arch()), "qkv_bias": True})
