import gguf
import numpy as np
import pytest
from gguf_files import TEMPLATE, interleave, make_arch, vocabulary, write_gguf
from tokenizers import Tokenizer

from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.models.arch import LinearScaling
from ssppo_jax.weights import hf
from ssppo_jax.weights.gguf import convert_gguf, unpermute
from ssppo_jax.weights.source import load_tokenizer


@pytest.fixture
def tiny_file(tmp_path, make_tree):
    """file(**settings): a GGUF file of a tiny llama, written with these settings."""

    def make(**settings):
        arch = make_arch()
        return write_gguf(tmp_path / "m.gguf", make_tree(arch), arch, **settings)

    return make


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_conversion_gives_the_weights_and_the_arch_back(kind, tied, tmp_path, make_tree):
    arch = make_arch(kind, tie_embeddings=tied)
    tree = make_tree(arch)
    file = write_gguf(tmp_path / "m.gguf", tree, arch, pre="qwen2" if kind == "qwen2" else "smollm")
    folder = convert_gguf(file, tmp_path / "out")
    assert hf.read_arch(folder) == arch
    loaded = dict(hf.flatten(hf.load_params(folder, arch)))
    for path, leaf in hf.flatten(tree):
        np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)


def test_unpermute_undoes_the_interleaving_by_head():
    rows = np.arange(2 * 6 * 3, dtype=np.float32).reshape(12, 3)
    mixed = interleave(rows, 2)
    # pairs (i, i + E/2) side by side
    assert mixed[:6, 0].tolist() == [rows[i, 0] for i in (0, 3, 1, 4, 2, 5)]
    np.testing.assert_array_equal(unpermute(mixed, 2), rows)


def test_quantised_tensors_are_dequantised(tmp_path, make_tree):
    arch = make_arch()
    tree = make_tree(arch)
    raw = tree["layers"]["mlp"]["up"]["kernel"][0].T  # [F,D]
    packed = gguf.quantize(np.ascontiguousarray(raw), gguf.GGMLQuantizationType.Q8_0)
    file = tmp_path / "q.gguf"
    original = gguf.GGUFWriter.add_tensor

    def add(self, name, value):
        if name == "blk.0.ffn_up.weight":
            return original(self, name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        return original(self, name, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_tensor", add)
        write_gguf(file, tree, arch)
    loaded = hf.load_params(convert_gguf(file, tmp_path / "out"), arch)["layers"]["mlp"]["up"][
        "kernel"
    ]
    error = np.abs(loaded[0].T - raw)
    assert 0 < error.max() < np.abs(raw).max() / 127
    np.testing.assert_array_equal(loaded[1], tree["layers"]["mlp"]["up"]["kernel"][1])


@pytest.fixture
def folder_of(tmp_path, make_tree):
    """folder(pre): a converted model with the tokenizer of that family."""

    def make(pre):
        arch = make_arch("qwen2" if pre == "qwen2" else "llama")
        return convert_gguf(
            write_gguf(tmp_path / f"{pre}.gguf", make_tree(arch), arch, pre=pre), tmp_path / pre
        )

    return make


@pytest.mark.parametrize("pre", ["smollm", "qwen2"])
def test_the_tokenizer_round_trips_text_and_knows_its_special_tokens(pre, folder_of):
    tokenizer = load_tokenizer(folder_of(pre), vocab_size=len(vocabulary()))
    text = " hello  the 1234 wörld 🦊\n\t<user> {{ None }}"
    ids = tokenizer(text + "<|im_end|>")["input_ids"]
    assert ids[-1] == 2 and ids.count(2) == 1
    assert tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False) == text
    assert vocabulary().index("<user>") in ids and vocabulary().index("hell") in ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.chat_template == TEMPLATE
    assert "[PAD]" not in tokenizer.get_vocab()  # a filler that no text may become
    assert tokenizer.decode([0, 1, ids[0], 2], skip_special_tokens=True) == tokenizer.decode(
        ids[:1]
    )
    with pytest.raises(ConfigError, match="the model has 99 embeddings, and text can become"):
        load_tokenizer(tokenizer.name_or_path, vocab_size=99)


@pytest.mark.parametrize("pre", ["smollm", "qwen2"])
def test_digits_stand_alone_in_both_families(pre, folder_of):
    """'12' and 'Ġ1' are in the vocabulary; neither pre-tokenizer may form them."""
    assert backend(folder_of(pre)).encode("a 12").tokens == ["a", "Ġ", "1", "2"]


def test_qwen2_splits_where_its_regex_does_and_composes_accents(folder_of):
    """Read with `tokenizers`: for qwen2 transformers would put its own pre-tokenizer in place of
    the file's."""
    smollm, qwen = backend(folder_of("smollm")), backend(folder_of("qwen2"))
    assert qwen.encode("e\u0301").ids == qwen.encode("\u00e9").ids  # NFC
    assert smollm.encode("e\u0301").ids != smollm.encode("\u00e9").ids
    spans = qwen.pre_tokenizer.pre_tokenize_str("it's (the) end!!\n\n 7")
    words = [word.replace("Ġ", " ").replace("Ċ", "\n") for word, _ in spans]
    assert words == ["it", "'s", " (", "the", ")", " end", "!!\n\n", " ", "7"]


def backend(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_a_template_is_stored_for_old_and_new_transformers(tmp_path, tiny_file):
    folder = convert_gguf(tiny_file(), tmp_path / "out")
    config = hf.read_json(folder / "tokenizer_config.json")
    assert (config["chat_template"], config["tokenizer_class"]) == (
        TEMPLATE,
        "PreTrainedTokenizerFast",
    )
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"pre": "gpt-2"}, "pre-tokenizer 'gpt-2'; supported: 'gpt2' with 'smollm', 'qwen2'"),
        ({"llama__rope__scaling__type": "yarn"}, "rope scaling 'yarn'"),
        ({"llama__rope__scaling__attn_factor": 2.0}, r"attn_factor 2\.0 is not supported"),
        ({"llama__rope__dimension_count": 4}, "RoPE on 4 of 8"),
        ({"split__count": 3, "split__no": 1}, "part 2 of a model split into 3 GGUF files.*--merge"),
        ({"general__type": "adapter"}, "a GGUF file of type 'adapter'; supported: model"),
        ({"llama__block_count": [2, 2]}, r"block_count is \[2, 2\]; supported: one number"),
        ({"llama__attention__sliding_window": 64}, "sliding window"),
        ({"drop": ("blk.1.ffn_up.weight",)}, r"missing blk\.1\.ffn_up\.weight"),
        ({"extra": {"rope_freqs.weight": np.ones(4, np.float32)}}, r"unknown rope_freqs\.weight"),
    ],
)
def test_what_is_not_understood_is_refused_by_name_and_writes_nothing(
    arguments, named, tmp_path, tiny_file
):
    file = tiny_file(**arguments)
    with pytest.raises(ConfigError, match=named):
        convert_gguf(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_metadata_that_is_no_utf_8_is_named(tmp_path, tiny_file):
    file = tiny_file(general__type="model")
    file.write_bytes(file.read_bytes().replace(b"<user>", b"<us\xff\xff>"))
    with pytest.raises(DataError, match=r"'tokenizer\.ggml\.tokens' is unreadable: 'utf-8'"):
        convert_gguf(file, tmp_path / "out")


def test_other_architectures_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "g.gguf", "gemma3")
    writer.add_context_length(8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match="architecture 'gemma3'; supported: llama, qwen2"):
        convert_gguf(tmp_path / "g.gguf", tmp_path / "out")


@pytest.mark.parametrize("keep", [0, 3, 40, 5000, -1000])
def test_a_damaged_file_is_an_error_and_not_a_model(keep, tmp_path, tiny_file):
    file = tiny_file()
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"m\.gguf: not a readable GGUF file"):
        convert_gguf(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "stops"),
    [
        ({}, (2,)),
        ({"eot_token_id": 0}, (2, 0)),
        ({"eot_token_id": 2, "eom_token_id": 1}, (2, 1)),
    ],
)
def test_every_end_that_llama_cpp_knows_stops_a_completion(settings, stops, tmp_path, tiny_file):
    """llama.cpp ends at eos, eot and eom; Llama 3's chat models end their turns with eot."""
    settings = {f"tokenizer__ggml__{key}": value for key, value in settings.items()}
    folder = convert_gguf(tiny_file(**settings), tmp_path / "out")
    assert hf.read_arch(folder).eos_ids == stops
    listed = hf.read_json(folder / "generation_config.json")["eos_token_id"]
    assert listed == (list(stops) if len(stops) > 1 else stops[0])


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({"scaling__type": "linear", "scaling__factor": 4.0}, LinearScaling(4.0)),
        ({"scaling__factor": 4.0}, LinearScaling(4.0)),
        ({"scale_linear": 2.5}, LinearScaling(2.5)),
        ({"scaling__factor": 0.0, "scale_linear": 2.5}, LinearScaling(2.5)),
        ({"scaling__type": "linear", "scaling__factor": 1.0}, None),
        ({"scaling__type": "none", "scaling__factor": 4.0}, None),
    ],
)
def test_linear_rope_scaling_is_read_as_llama_cpp_reads_it(settings, scaling, tmp_path, tiny_file):
    """Its loader takes linear where no type stands, and the old key where there is no factor."""
    settings = {f"llama__rope__{key}": value for key, value in settings.items()}
    folder = convert_gguf(tiny_file(**settings), tmp_path / "out")
    assert hf.read_arch(folder).rope_scaling == scaling


@pytest.mark.parametrize("name", ["eot", "padding"])
def test_a_special_id_beyond_the_tokens_is_named(name, tmp_path, tiny_file):
    """Some converters write -1 for none."""
    key = f"tokenizer.ggml.{name}_token_id"
    with pytest.raises(DataError, match=f"{key} is -1, and the file has"):
        convert_gguf(tiny_file(**{key: -1}), tmp_path / "out")


def test_merges_of_other_tokens_and_tensors_of_other_kinds_are_named(tmp_path, make_tree):
    arch = make_arch()
    tree = make_tree(arch)
    with pytest.MonkeyPatch.context() as patch:
        merges = gguf.GGUFWriter.add_token_merges
        patch.setattr(
            gguf.GGUFWriter, "add_token_merges", lambda self, _: merges(self, ["no such"])
        )
        file = write_gguf(tmp_path / "m.gguf", tree, arch)
    with pytest.raises(DataError, match="tokens and merges do not fit"):
        convert_gguf(file, tmp_path / "one")
    tree["norm"]["scale"] = tree["norm"]["scale"].astype(np.float64)
    file = write_gguf(tmp_path / "d.gguf", tree, arch)
    with pytest.raises(ConfigError, match=r"output_norm\.weight is quantised as F64"):
        convert_gguf(file, tmp_path / "two")
