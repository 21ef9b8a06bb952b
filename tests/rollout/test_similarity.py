"""Sentence similarity: the embedder's batching and counting, the tables by pencil, MiniLM against
its golden file."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ssppo_jax.errors import ConfigError, GateError, UserError
from ssppo_jax.models.encoder import Encoder, EncoderArch
from ssppo_jax.oracles import embedder as embedder_module
from ssppo_jax.oracles.embedder import EmbedCounts, SentenceEmbedder
from ssppo_jax.rollout.similarity import (
    SIMILARITIES,
    WITHOUT_ENCODER,
    score_similarity,
    similarity_matrix,
)
from ssppo_jax.weights.encoder import LoadedEncoder

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "minilm.npz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(36))]
ENCODER = Encoder(EncoderArch(vocab_size=40, width=16, layers=2, heads=2, mlp=24, positions=64))


def word_tokenizer():
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def params():
    made = jax.jit(ENCODER.init)(
        jax.random.key(0), jnp.zeros((1, 4), jnp.int32), jnp.ones(1, jnp.int32)
    )["params"]
    leaves, tree = jax.tree.flatten(made)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(
        tree, [x + 0.5 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    )


def encode(params, tokens, length):  # one function for all tests, so that they share compilations
    return ENCODER.apply({"params": params}, tokens, length)


def embedder(params, tokenizer=None, apply=encode, **options):
    return SentenceEmbedder(
        apply, params, tokenizer or word_tokenizer(), **({"max_length": 32} | options)
    )


def words(count, start=0):
    return " ".join(f"w{(start + 7 * i) % 36}" for i in range(count))


def test_a_text_embeds_alone_as_in_any_batch(params):
    made = embedder(params, batch_size=8)
    texts = [words(n, start=n) for n in (1, 3, 13, 14, 15, 29, 30, 40, 2, 5, 6, 7, 8, 9)]
    together = made.embed(texts)
    assert together.shape == (14, 16) and together.dtype == np.float32
    alone = np.concatenate([made.embed([text]) for text in texts])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    shuffled = [9, 2, 13, 5, 0]
    np.testing.assert_allclose(
        made.embed([texts[i] for i in shuffled]), together[shuffled], atol=1e-5
    )
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_a_run_compiles_few_shapes_however_many_lengths_it_sees(params):
    shapes = []

    def apply(params, tokens, length):
        shapes.append(tokens.shape)  # runs once a compiled shape
        return tokens[:, :2] * 1.0

    made = embedder(params, apply=apply, max_length=48, batch_size=8)
    for start in range(3):
        made.embed([words(n, start) for n in range(1, 63)])
        made.embed([words(start + 1)])
    assert sorted(shapes) == [(1, 16), (8, 16), (8, 32), (8, 48)]


def test_padding_to_one_shape_changes_no_vector_and_compiles_once(params):
    shapes = set()

    def seen(p, tokens, length):
        shapes.add(tokens.shape)
        return encode(p, tokens, length)

    texts = [words(n, start=n) for n in (1, 3, 17, 29)]
    one = embedder(params, apply=seen, shortest=32).embed(texts)
    assert shapes == {(4, 32)}
    np.testing.assert_allclose(one, embedder(params).embed(texts), atol=1e-6)


def test_a_text_at_the_limit_is_whole_and_one_over_it_is_cut_and_counted(params):
    made = embedder(params, max_length=6, batch_size=8)
    exact, over = words(4), words(4) + " w35"
    vectors = made.embed([exact, over, over + " w1 w2", words(3)])
    assert made.counts == EmbedCounts(texts=4, truncated=2, empty=0)
    np.testing.assert_allclose(vectors[1:3], vectors[[0, 0]], atol=1e-6)
    assert np.abs(vectors[3] - vectors[0]).max() > 0.01


def test_counts_add_up_over_calls_and_start_again_when_taken(params):
    made = embedder(params, max_length=6, batch_size=8)
    made.embed([words(9), words(9), ""])  # equal texts count each time
    made.embed([words(2)])
    assert made.take_counts() == EmbedCounts(texts=4, truncated=2, empty=1)
    assert made.take_counts() == EmbedCounts()


def test_the_tokenizers_own_padding_and_limit_are_overridden(params):
    loud = word_tokenizer()
    loud.enable_padding(length=40)
    loud.enable_truncation(5)
    text = words(20)
    np.testing.assert_array_equal(
        embedder(params, loud).embed([text]), embedder(params).embed([text])
    )


def test_empty_and_blank_responses_are_equal_to_each_other_and_counted(params):
    made = embedder(params, batch_size=8)
    got = score_similarity(["p"], [["", " \n", "w5 w9"]], made.embed)
    assert made.counts == EmbedCounts(texts=3, truncated=0, empty=2)
    assert np.isfinite(got).all()
    assert got[0, 0, 1] == pytest.approx(1, abs=1e-6)
    assert got[0, 0, 2] < 0.99


def test_equal_texts_of_one_call_are_embedded_once(params):
    shapes = []

    def apply(params, tokens, length):
        shapes.append(tokens.shape)
        return tokens * 1.0

    vectors = embedder(params, apply=apply, batch_size=8).embed(["w1 w2"] * 9)
    assert shapes == [(1, 16)]
    np.testing.assert_array_equal(vectors, np.tile(vectors[:1], (9, 1)))


def test_embedding_makes_no_implicit_transfer(params):
    made = embedder(params, batch_size=8)
    made.embed([words(3)])
    with jax.transfer_guard("disallow"):
        made.embed([words(4)])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_length": 2}, "max_length=2"), ({"batch_size": 0}, "batch_size=0")],
)
def test_impossible_options_are_refused(params, options, message):
    with pytest.raises(ConfigError, match=message):
        embedder(params, **options)


def test_nothing_to_embed_is_refused(params):
    with pytest.raises(ValueError, match="at least one text"):
        embedder(params).embed([])


def test_similarity_matrix_by_pencil():
    embeddings = np.array([[[3, 4], [8, -6], [-6, -8]], [[1, 0], [1, 1], [0, 0]]], np.float32)
    half = 0.5**0.5
    expected = [[[1, 0, -1], [0, 1, 0], [-1, 0, 1]], [[1, half, 0], [half, 1, 0], [0, 0, 0]]]
    np.testing.assert_allclose(similarity_matrix(embeddings), expected, atol=1e-6)


def test_similarity_matrix_is_exactly_symmetric_bounded_and_scale_free():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(50, 5, 33)).astype(np.float32)
    embeddings[:, 4] = embeddings[:, 0] * 1.0001
    got = similarity_matrix(embeddings)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, got.swapaxes(1, 2))
    assert got.max() <= 1 and got.min() >= -1
    np.testing.assert_allclose(similarity_matrix(embeddings * 1000), got, atol=1e-6)


def test_relu_cosine_makes_opposed_texts_unrelated_and_cosine_keeps_them():
    vectors = {"up": [0, 1], "down": [0, -1], "slope": [0.6, 0.8]}

    def embed(texts):
        return np.array([vectors[t] for t in texts], np.float32)

    groups = [["up", "down", "slope"]]
    expected = np.array([[1, -1, 0.8], [-1, 1, -0.8], [0.8, -0.8, 1]])[None]
    np.testing.assert_allclose(
        score_similarity(["p"], groups, embed, similarity="cosine"), expected, atol=1e-6
    )
    np.testing.assert_allclose(
        score_similarity(["p"], groups, embed), np.maximum(expected, 0), atol=1e-6
    )


def test_token_jaccard_by_pencil_needs_no_encoder():
    groups = [["a b", "B c", ""], ["x", "x x X", ""]]
    got = score_similarity(["p", "q"], groups, None, similarity="token_jaccard")
    third = 1 / 3
    expected = [[[1, third, 0], [third, 1, 0], [0, 0, 1]], [[1, 1, 0], [1, 1, 0], [0, 0, 1]]]
    np.testing.assert_allclose(got, expected, atol=1e-7)
    assert {"token_jaccard"} == WITHOUT_ENCODER <= set(SIMILARITIES)
    np.testing.assert_array_equal(
        score_similarity(["p"], [["", ""]], None, similarity="token_jaccard"), 1
    )


def test_embed_text_and_prefix_decide_what_the_encoder_sees():
    seen = []

    def embed(texts):
        seen.append(list(texts))
        return np.ones((len(texts), 3), np.float32)

    prompts, groups = ["why?", "how?"], [["a", "b"], ["c", "d"]]
    score_similarity(prompts, groups, embed)
    score_similarity(prompts, groups, embed, embed_text="prompt_response")
    score_similarity(prompts, groups, embed, prefix="clustering: ")
    with_prompt = ["why?\na", "why?\nb", "how?\nc", "how?\nd"]
    assert seen == [["a", "b", "c", "d"], with_prompt, [f"clustering: {x}" for x in "abcd"]]


def test_groups_keep_to_themselves(params):
    made = embedder(params, batch_size=8)
    groups = [[words(3), words(9, 4)], [words(20, 1), words(5, 2)], [words(40), words(2, 8)]]
    together = score_similarity(["p"] * 3, groups, made.embed)
    alone = np.concatenate([score_similarity(["p"], [group], made.embed) for group in groups])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_bad_names_shapes_and_values_are_refused():
    def broken(texts):
        return np.full((len(texts), 2), np.nan, np.float32)

    with pytest.raises(ConfigError, match=r"similarity='euclid'.*relu_cosine"):
        score_similarity(["p"], [["a", "b"]], None, similarity="euclid")
    with pytest.raises(ConfigError, match=r"embed_text='prompt'.*prompt_response"):
        score_similarity(["p"], [["a", "b"]], None, embed_text="prompt")
    with pytest.raises(ValueError, match=r"sizes \[1, 2\]"):
        score_similarity(["p", "q"], [["a", "b"], ["c"]], None, similarity="token_jaccard")
    with pytest.raises(ValueError, match="1 prompts, 2 groups"):
        score_similarity(["p"], [["a"], ["c"]], None, similarity="token_jaccard")
    with pytest.raises(UserError, match="NaN or Inf"):
        score_similarity(["p"], [["a", "b"]], broken)


def test_a_vector_that_is_not_finite_is_an_error_of_the_encoder_by_name(params):
    broken = jax.tree.map(lambda x: x * np.float32(np.nan), params)
    with pytest.raises(GateError, match=r"sentence encoder 'mine' gives 2 of 2 texts a vector"):
        embedder(broken, name="sentence encoder 'mine'").embed(["w1", "w2", "w1"])
    assert np.isfinite(embedder(params).embed(["w1", "w2"])).all()


@pytest.mark.model
def test_minilm_equals_sentence_transformers():
    with np.load(GOLDEN) as golden:
        texts = [text.decode() for text in golden["texts"]]
        embeddings, cosines = golden["embeddings"], golden["cosines"]
    made = SentenceEmbedder.load("embedded:minilm", batch_size=len(texts))
    vectors = made.embed(texts)
    assert made.counts == EmbedCounts(texts=24, truncated=2, empty=2)
    np.testing.assert_allclose(similarity_matrix(vectors[None])[0], cosines, atol=1e-4)
    np.testing.assert_allclose(vectors, embeddings, atol=1e-4)
    assert (
        cosines.min() < 0.1 and np.sort(np.unique(cosines))[-30] < 0.999
    )  # the golden file tells texts apart


def test_a_folders_limit_and_tokenizer_are_checked_before_use(params, tmp_path, monkeypatch):
    loaded = LoadedEncoder(ENCODER, params, tmp_path, ())
    monkeypatch.setattr(embedder_module, "load_encoder", lambda source, dtype: loaded)
    with pytest.raises(ConfigError, match=r"max_length=65.*64 positions"):
        SentenceEmbedder.load("folder", max_length=65)
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        SentenceEmbedder.load("folder", max_length=64)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is not a tokenizer"):
        SentenceEmbedder.load("folder", max_length=64)
    word_tokenizer().save(str(tmp_path / "tokenizer.json"))
    made = SentenceEmbedder.load("folder", max_length=32, batch_size=8)
    np.testing.assert_allclose(
        made.embed([words(5)]), embedder(params, batch_size=8).embed([words(5)]), atol=1e-6
    )
