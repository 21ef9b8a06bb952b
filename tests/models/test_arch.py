import dataclasses

import pytest

from ssppo_jax.errors import ConfigError
from ssppo_jax.models.arch import Arch, LinearScaling, Llama3Scaling, tiny_arch
from ssppo_jax.models.hf_config import arch_from_hf, arch_to_hf

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
VARIANTS = [
    tiny_arch(),
    tiny_arch(tie_embeddings=False, num_kv_heads=4, eos_ids=(2, 7)),
    tiny_arch(
        rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192), rope_theta=5e5, bos_id=None, eos_ids=()
    ),
    tiny_arch(rope_scaling=LinearScaling(4.0)),
    tiny_arch(num_labels=1),
    tiny_arch(model_type="qwen2", num_labels=3, tie_embeddings=False),
    tiny_arch(model_type="mistral", sliding_window=512, sliding_layers=(0, 1)),
    tiny_arch(model_type="mistral"),
    tiny_arch(model_type="qwen2"),
    tiny_arch(model_type="qwen2", sliding_window=16, sliding_layers=(1,)),
    tiny_arch(model_type="qwen3", head_dim=32),
    tiny_arch(
        model_type="gemma2",
        sliding_window=16,
        sliding_layers=(0,),
        query_pre_attn_scalar=144,
        attn_softcap=5.0,
    ),
    tiny_arch(
        model_type="gemma2", query_pre_attn_scalar=256, attn_softcap=50.0, final_softcap=30.0
    ),
    tiny_arch(
        model_type="gemma3_text",
        sliding_window=16,
        sliding_layers=(0,),
        query_pre_attn_scalar=256,
        local_rope_theta=1e4,
        rope_theta=1e6,
        rope_scaling=LinearScaling(8.0),
    ),
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
    llama = {"num_kv_heads": 32, "head_dim": 2, "max_positions": 2048, "rope_theta": 10000.0}
    llama |= {"bos_id": 1, "eos_ids": (2,), "norm_eps": 1e-6, "tie_embeddings": False}
    mistral = {"num_kv_heads": 8, "sliding_window": 4096, "sliding_layers": (0,)}
    gemma2 = {"num_kv_heads": 4, "head_dim": 256, "tie_embeddings": True, "bos_id": 2}
    gemma2 |= {"eos_ids": (1,), "attn_softcap": 50.0, "final_softcap": 30.0}
    gemma2 |= {"query_pre_attn_scalar": 256, "sliding_window": 4096, "max_positions": 8192}
    gemma3 = {"rope_theta": 1e6, "local_rope_theta": 1e4, "max_positions": 131072}
    gemma3 |= {"attn_softcap": None, "final_softcap": None}
    for changes, wanted in (
        ({"model_type": "llama"}, llama),
        ({"model_type": "qwen2"}, {"num_kv_heads": 32, "bos_id": None, "eos_ids": ()}),
        ({"model_type": "mistral"}, mistral),
        ({"model_type": "mistral", "sliding_window": None}, {"sliding_layers": ()}),
        ({"model_type": "qwen3"}, {"head_dim": 128}),
        (
            {"model_type": "gemma2", "num_hidden_layers": 7},
            gemma2 | {"sliding_layers": (0, 2, 4, 6)},
        ),
        (
            {"model_type": "gemma3_text", "num_hidden_layers": 7},
            gemma3 | {"sliding_layers": (0, 1, 2, 3, 4, 6)},
        ),
    ):
        arch = arch_from_hf(bare | changes)
        assert {field: getattr(arch, field) for field in wanted} == wanted, changes
    assert arch_from_hf(bare | {"model_type": "qwen2"}).family.qkv_bias


def test_no_heads_are_named_also_where_their_width_is_derived_from_them():
    bare = {"model_type": "llama", "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1}
    bare |= {"intermediate_size": 64, "num_attention_heads": 0, "max_position_embeddings": 64}
    with pytest.raises(ConfigError, match="num_heads must be a whole number >= 1, got 0"):
        arch_from_hf(bare)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rope_scaling", "yes", "rope_scaling must be a JSON object, not 'yes'"),
        (
            "rope_scaling",
            {"type": "linear", "factor": 0},
            "the factor of rope scaling must be above 0",
        ),
        ("rope_theta", "large", "rope_theta must be a number, not 'large'"),
        ("rope_theta", float("inf"), "rope_theta must be a number, not inf"),
        ("rms_norm_eps", [], r"rms_norm_eps must be a number, not \[\]"),
        ("hidden_size", 64.5, "hidden_size must be a whole number, not 64.5"),
        ("num_key_value_heads", True, "num_key_value_heads must be a whole number, not True"),
        ("bos_token_id", "a", "bos_token_id must be a token id or a list of them, not 'a'"),
        ("eos_token_id", [2, None], r"eos_token_id must be .*, not \[2, None\]"),
        ("architectures", "Llama", "architectures must be a list of names, not 'Llama'"),
        ("model_type", ["llama"], r"model_type \['llama'\] is not supported"),
        (
            "rope_scaling",
            {"rope_type": "linear", "factor": "2x"},
            "rope_scaling.factor must be a number, not '2x'",
        ),
        ("rope_parameters", {"rope_type": []}, "rope_parameters.rope_type must be a name"),
    ],
)
def test_a_field_of_another_kind_is_named(field, value, message):
    with pytest.raises(ConfigError, match=message):
        arch_from_hf(config(**{field: value}))


def test_gemma3_rope_is_read_in_both_spellings():
    bare = arch_to_hf(VARIANTS[-1])
    nested = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    }
    for key in ("rope_theta", "rope_local_base_freq", "rope_scaling"):
        del bare[key]
    assert arch_from_hf(bare | {"rope_parameters": nested}) == VARIANTS[-1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"model_type": "gpt2"},
            "'gpt2' is not supported; supported: llama, mistral, qwen2, qwen3, gemma2, gemma3_text",
        ),
        ({"model_type": "gemma3"}, "of gemma3, the text models: gemma3_text"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        (
            {"model_type": "gemma2", "hidden_activation": "silu"},
            "activation 'silu' is not supported for gemma2",
        ),
        ({"use_bidirectional_attention": True, "model_type": "gemma3_text"}, "causal attention"),
        (
            {
                "rope_parameters": {"sliding_attention": {"rope_type": "yarn"}},
                "model_type": "gemma3_text",
            },
            "sliding_att",
        ),
        ({"logits_scaling": 8.0}, "'logits_scaling' .* not known for llama"),
        ({"attn_logit_softcapping": 50.0}, "'attn_logit_softcapping' .* not known for llama"),
        ({"pretraining_tp": 2}, "'pretraining_tp'"),
        ({"rope_scaling": {"type": "linear"}}, "linear lacks factor"),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention"]},
            "names 1 layers, num_hidden_layers says 2",
        ),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_dropout": 0.1}, "attention_dropout 0.1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor 0.25"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            "'yarn' is not supported; supported: none",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "lacks low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "per layer type"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window 0"),
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
        arch_from_hf(
            config(hidden_act="relu", mlp_bias=True, rope_scaling={"rope_type": "dynamic"})
        )
    assert len(str(error.value).splitlines()) == 3


def test_what_changes_no_number_is_accepted():
    idle = {
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "pretraining_tp": 1,
        "rope_interleaved": False,
        "x": None,
    }
    assert arch_from_hf(config(**idle)) == tiny_arch()


def test_the_layers_a_window_binds_are_those_transformers_gives_it():
    assert arch_from_hf(config(model_type="mistral", sliding_window=512)).sliding_layers == (0, 1)
    qwen = config(model_type="qwen2", sliding_window=4, max_window_layers=1)
    assert arch_from_hf(qwen).sliding_window is None
    assert arch_from_hf(qwen | {"use_sliding_window": True}).sliding_layers == (1,)
    types = ["sliding_attention", "full_attention"]
    assert arch_from_hf(
        qwen | {"use_sliding_window": True, "layer_types": types}
    ).sliding_layers == (0,)
    assert (
        arch_from_hf(qwen | {"use_sliding_window": True, "max_window_layers": 2}).sliding_window
        is None
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"local_rope_theta": 1e4}, "local_rope_theta 10000.0 does not fit model_type 'llama'"),
        ({"model_type": "gemma3_text"}, "local_rope_theta None does not fit"),
        ({"final_softcap": 3.0}, "final_softcap 3.0 does not fit"),
        ({"query_pre_attn_scalar": 8}, "query_pre_attn_scalar 8 does not fit"),
        ({"sliding_window": 4, "sliding_layers": (0,)}, "windows in none layers"),
        ({"sliding_window": 4}, "one without the other"),
        ({"model_type": "qwen2", "sliding_window": 4, "sliding_layers": (1, 0)}, "must ascend"),
        (
            {"model_type": "qwen2", "sliding_window": 4, "sliding_layers": (2,)},
            "within the 2 layers",
        ),
        (
            {"model_type": "mistral", "sliding_window": 4, "sliding_layers": (1,)},
            "windows in all layers",
        ),
    ],
)
def test_an_arch_is_checked_wherever_it_is_made(changes, named):
    with pytest.raises(ConfigError, match=named):
        Arch(**{**dataclasses.asdict(tiny_arch()), **changes})
