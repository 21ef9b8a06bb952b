"""A model written as GGUF is the one that the gguf package and our own reader read from it.

llama.cpp itself reads one in `make llamacpp`."""

import dataclasses
import json

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf_files import (
    MERGES,
    TEMPLATE,
    gguf_tensors,
    kinds,
    make_arch,
    sentencepiece,
    vocabulary,
    write_gguf,
)
from safetensors.numpy import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from ssppo_jax.__main__ import main
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.models.arch import LinearScaling, Llama3Scaling, tiny_arch
from ssppo_jax.weights import hf
from ssppo_jax.weights.gguf import convert_gguf
from ssppo_jax.weights.gguf_export import is_sentencepiece, piece_scores, pre_of, save_gguf
from ssppo_jax.weights.source import load_tokenizer


@pytest.fixture
def make_folder(tmp_path, make_tree):
    """folder(arch, dtype): a model folder with a tokenizer; and its tree."""

    def make(arch, dtype=np.float32):
        pre = "qwen2" if arch.model_type == "qwen2" else "smollm"
        plain = make_arch(pre if pre == "qwen2" else "llama")
        file = write_gguf(tmp_path / "plain.gguf", make_tree(plain), plain, pre=pre)
        tree = make_tree(arch, dtype=dtype)
        tokens = convert_gguf(file, tmp_path / "plain")
        return hf.save_params(tree, arch, tmp_path / "model", tokenizer_from=tokens), tree

    return make


@pytest.fixture
def file(tmp_path):
    return tmp_path / "out.gguf"


CASES = {
    "llama": {},
    "llama, tied": {"tie_embeddings": True},
    "mistral": {"model_type": "mistral"},
    "qwen2": {"model_type": "qwen2"},
    "wide heads, no keys shared": {"head_dim": 16, "num_kv_heads": 4},
    "linear scaling": {"rope_scaling": LinearScaling(4.0)},
    "three ends": {"eos_ids": (2, 0, 5)},
}


def arch_of(tie_embeddings=False, model_type="llama", **changes):
    return make_arch(model_type, tie_embeddings=tie_embeddings, **changes)


@pytest.mark.parametrize("case", CASES)
def test_both_readers_find_the_model_that_was_written(case, file, make_folder, tmp_path):
    arch = arch_of(**CASES[case])
    folder, tree = make_folder(arch)
    save_gguf(folder, file)
    tensors = {t.name: t for t in gguf.GGUFReader(file).tensors}
    for name, want in gguf_tensors(tree, arch):
        np.testing.assert_array_equal(tensors.pop(name).data, want)
    assert not tensors
    again = convert_gguf(file, tmp_path / "again")
    kind = "qwen2" if arch.model_type == "qwen2" else "llama"
    same = dataclasses.replace(arch, model_type=kind)
    assert hf.read_arch(again) == same
    loaded = dict(hf.flatten(hf.load_params(again, same)))
    for path, leaf in hf.flatten(tree):
        np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)
    text = "hello the 12!! <user> <|im_end|>"
    ids = [load_tokenizer(f)(text)["input_ids"] for f in (folder, again)]
    assert ids[0] == ids[1] and load_tokenizer(again).chat_template == TEMPLATE


def test_the_metadata_is_what_llama_cpp_reads(file, make_folder):
    folder, _ = make_folder(dataclasses.replace(arch_of(), vocab_size=len(vocabulary()) + 2))
    save_gguf(folder, file, dtype="bfloat16")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}
    size = len(vocabulary())
    wanted = {
        "general.architecture": "llama",
        "general.file_type": 32,  # mostly bfloat16
        "llama.context_length": 512,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 8,
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 1e5,
        "llama.vocab_size": size + 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    assert {name: fields.get(name) for name in wanted} == wanted
    tokens = [*vocabulary()[:-1], *(f"[PAD{i}]" for i in (size - 1, size, size + 1))]
    assert fields["tokenizer.ggml.tokens"] == tokens
    assert fields["tokenizer.ggml.token_type"] == [*kinds()[:-1], 5, 5, 5]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("source", [np.float32, ml_dtypes.bfloat16])
def test_matrices_have_the_asked_dtype_and_vectors_stay_float32(dtype, source, file, make_folder):
    folder, tree = make_folder(arch_of(), source)
    save_gguf(folder, file, dtype=dtype)
    tensors = {t.name: t for t in gguf.GGUFReader(file).tensors}
    norm = tree["norm"]["scale"].astype(np.float32)
    np.testing.assert_array_equal(tensors["output_norm.weight"].data, norm)
    raw = tensors["token_embd.weight"]
    read = gguf.dequantize(raw.data, raw.tensor_type)
    np.testing.assert_array_equal(read, tree["embed"]["embedding"].astype(dtype).astype(np.float32))


def test_the_dtype_is_the_sources_unless_told_otherwise(file, make_folder):
    folder, _ = make_folder(arch_of(), ml_dtypes.bfloat16)
    save_gguf(folder, file)
    kinds_found = {t.tensor_type.name for t in gguf.GGUFReader(file).tensors}
    assert kinds_found == {"BF16", "F32"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "qwen2", "head_dim": 16}, "heads that are not as wide together"),
        ({"num_labels": 1}, "a reward model's head"),
        ({"model_type": "qwen3"}, "models of the family qwen3 cannot .* llama, mistral, qwen2"),
        (
            {"model_type": "mistral", "sliding_window": 8, "sliding_layers": (0, 1)},
            r"a sliding window \(8\)",
        ),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused_by_name(
    changes, told, file, make_tree, tmp_path
):
    arch = arch_of(**changes)
    folder = hf.save_params(make_tree(arch), arch, tmp_path / "model")
    with pytest.raises(ConfigError, match=told):
        save_gguf(folder, file)
    assert not list(tmp_path.glob("*gguf*"))


def test_numbers_beyond_float16_are_refused_and_nothing_is_left(file, make_folder, tmp_path):
    folder, tree = make_folder(arch_of())
    tree["layers"]["mlp"]["up"]["kernel"][1, 0, 0] = 1e6
    hf.save_params(tree, hf.read_arch(folder), tmp_path / "large", tokenizer_from=folder)
    with pytest.raises(ConfigError, match=r"blk\.1\.ffn_up\.weight has numbers beyond float16"):
        save_gguf(tmp_path / "large", file, dtype="float16")
    assert not list(tmp_path.glob("out*"))


def test_a_folder_that_cannot_be_written_so_is_refused(file, make_folder):
    folder, _ = make_folder(arch_of())
    tokenizer = folder / "tokenizer.json"
    stored = json.loads(tokenizer.read_text())
    stored["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.0], ["b", -2.0]]}
    tokenizer.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="Unigram"):
        save_gguf(folder, file)
    weights = next(folder.glob("*.safetensors"))
    save_file({k: v.astype(np.float64) for k, v in load_file(weights).items()}, weights)
    with pytest.raises(ConfigError, match="is stored in float64, not in"):
        save_gguf(folder, file, dtype="source")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(DataError, match="not a valid safetensors file"):
        hf.stored_dtype(folder)


def test_a_file_that_is_there_is_kept(file, make_folder):
    folder, _ = make_folder(arch_of())
    file.write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        save_gguf(folder, file)
    assert file.read_text() == "mine"


def test_llama_3s_rope_is_written_as_divisors_of_its_frequencies(file, make_folder):
    """By the rule of Llama 3.1's own code: whole below the high cut-off, a ramp between the two."""
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 128)
    folder, _ = make_folder(arch_of(head_dim=16, rope_scaling=scaling))
    save_gguf(folder, file)
    wanted = []
    for i in range(8):
        wavelength = 2 * np.pi * 1e5 ** (2 * i / 16)
        smooth = (128 / wavelength - 1.0) / (4.0 - 1.0)
        between = 1 / ((1 - smooth) / 8.0 + smooth)
        wanted.append(1.0 if wavelength < 32 else 8.0 if wavelength > 128 else between)
    found = {t.name: t for t in gguf.GGUFReader(file).tensors}["rope_freqs.weight"].data
    assert {1.0, 8.0} < set(wanted) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize("ignore_merges", [True, False])
def test_llama_3s_tokenizer_is_known_with_the_merging_that_llama_cpp_gives_it(
    ignore_merges, tmp_path
):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    stored = json.loads(tokenizer.to_str())
    if ignore_merges:
        assert pre_of(stored, tmp_path) == "llama-bpe"
        return
    with pytest.raises(ConfigError, match="cuts text as none that is known"):
        pre_of(stored, tmp_path)


PIECES, LETTERS = ("▁a", "ab", "▁ab", "bc"), ("▁", "a", "b", "c")


def test_sentencepiece_is_written_with_scores_that_order_the_pieces(tmp_path, make_tree, file):
    arch = tiny_arch(vocab_size=268, model_type="mistral")
    folder = hf.save_params(make_tree(arch), arch, tmp_path / "model")
    sentencepiece(PIECES, LETTERS).save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    hf.write_json(folder / "tokenizer_config.json", settings)
    save_gguf(folder, file)
    fields = {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}
    assert fields["tokenizer.ggml.model"] == "llama"
    tokens, scores = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores"))
    assert tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert tokens[259:] == [*PIECES, *LETTERS, "[PAD267]"]
    assert scores[259:263] == [0.0, -1.0, -2.0, -3.0] and not any(scores[:259])
    assert fields["tokenizer.ggml.token_type"] == [2, 3, 3, *[6] * 256, *[1] * 8, 5]
    assert fields["tokenizer.ggml.unknown_token_id"] == 0
    assert fields["tokenizer.ggml.add_space_prefix"] is True
    assert "tokenizer.ggml.merges" not in fields


def test_sentencepiece_that_puts_a_space_only_before_a_whole_text_is_another_rule():
    """llama.cpp puts one behind special tokens too, as `Prepend` does and `Metaspace` does not."""
    tokenizer = sentencepiece(PIECES, LETTERS)
    assert is_sentencepiece(json.loads(tokenizer.to_str()))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    assert not is_sentencepiece(json.loads(tokenizer.to_str()))


@pytest.mark.parametrize(
    "merges",
    [
        [("a", "b"), ("b", "c"), ("ab", "c"), ("d", "a"), ("a", "bc")],  # "abc" stands apart
        [("a", "b"), ("b", "c"), ("ab", "c")],  # and ("a", "bc") is no merge
    ],
)
def test_merges_that_have_no_order_of_pieces_are_refused(merges, tmp_path):
    vocab = dict.fromkeys(("a", "b", "c", "d", "ab", "bc", "abc", "da"), 0)
    with pytest.raises(ConfigError, match="not those of a SentencePiece model"):
        piece_scores(vocab, merges, tmp_path)


def test_a_tokenizer_is_known_by_how_it_cuts_text_and_not_by_its_offsets(tmp_path, make_folder):
    """Published tokenizers differ in `trim_offsets`, which changes no id."""
    folder, _ = make_folder(arch_of(model_type="qwen2"))
    stored = json.loads((folder / "tokenizer.json").read_text())
    for offsets in (False, True):
        stored["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = offsets
        assert pre_of(stored, tmp_path) == "qwen2"


def test_a_tokenizer_that_cuts_text_otherwise_is_refused(tmp_path):
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\s+"), behavior="isolated")
    tokenizer.pre_tokenizer = split
    stored = json.loads(tokenizer.to_str())
    with pytest.raises(ConfigError, match=r"supported: byte-level BPE of smollm, qwen2"):
        pre_of(stored, tmp_path)


def test_convert_writes_a_file_where_its_name_ends_in_gguf(file, make_folder, capsys):
    folder, _ = make_folder(arch_of())
    assert main(["convert", f"--input={folder}", f"--output={file}", "--dtype=float16"]) == 0
    assert capsys.readouterr().out == f"wrote {file}\n"
    assert {t.tensor_type.name for t in gguf.GGUFReader(file).tensors} == {"F16", "F32"}
