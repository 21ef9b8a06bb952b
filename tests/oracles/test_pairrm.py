"""PairRM as an oracle: both orders, nothing cut, and the same numbers on a mesh."""

import itertools
import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from ssppo_jax.distributed.mesh import make_mesh
from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles import pairrm as module
from ssppo_jax.oracles.pairrm import pairrm
from ssppo_jax.oracles.protocol import checked
from ssppo_jax.types import Prompt
from ssppo_jax.weights.ranker import MARKERS, load_ranker

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/pairrm.npz"
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghij"]
PROMPTS = [
    Prompt("p0", ({"role": "user", "content": "a b c"},)),
    Prompt("p1", ({"role": "user", "content": "d"},)),
]
RESPONSES = [["a a", "b c d e f g", ""], ["j", "i h", "j"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The golden model with a word-level tokenizer of its own."""
    out = tmp_path_factory.mktemp("pairrm")
    with np.load(GOLDEN, allow_pickle=False) as file:
        tensors = {
            key.removeprefix("tensor/"): x for key, x in file.items() if key.startswith("tensor/")
        }
        config = json.loads(str(file["config"]))
    save_file(tensors, out / "model.safetensors")
    vocab = {word: i for i, word in enumerate(WORDS)} | dict(
        zip(MARKERS, (60, 61, 62), strict=True)
    )
    vocab |= {f"x{i}": i for i in range(len(WORDS), 60)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "config.json").write_text(json.dumps(config))
    return out


def ids_of(source, first, second):
    """As PairRM-hf's card composes them."""

    def part(marker, text):
        return [1, marker, *(WORDS.index(word) for word in text.split()), 2]

    return part(60, source) + part(61, first) + part(62, second)


def test_preferences_come_from_both_orders_of_every_pair(folder):
    loaded = load_ranker(folder)
    verdict = checked(pairrm(source=str(folder)).ask(PROMPTS, RESPONSES), (2, 3))

    def logit(b, i, j):
        ids = np.array([ids_of(PROMPTS[b].text, RESPONSES[b][i], RESPONSES[b][j])], np.int32)
        return float(
            loaded.ranker.apply({"params": loaded.params}, ids, np.array([ids.shape[1]], np.int32))[
                0
            ]
        )

    for b, (i, j) in itertools.product(range(2), itertools.permutations(range(3), 2)):
        one, two = logit(b, i, j), logit(b, j, i)
        np.testing.assert_allclose(
            verdict.preference[b, i, j], 1 / (1 + np.exp((two - one) / 2)), atol=1e-5
        )
        want = 1 / (1 + np.exp(-one)) + 1 / (1 + np.exp(-two)) - 1
        np.testing.assert_allclose(verdict.parts["asymmetry"][b, i, j], want, atol=1e-5)
    assert verdict.preference[1, 0, 2] == 0.5 and np.abs(verdict.parts["asymmetry"]).max() > 0.01
    assert np.abs(verdict.preference[0] - 0.5).max() > 0.05


def test_the_same_on_a_mesh_and_whatever_the_batch(folder):
    alone = pairrm(source=str(folder), batch_size=3).ask(PROMPTS, RESPONSES)
    cut = pairrm(source=str(folder), batch_size=3)
    cut.place(make_mesh((2, 2, 2)))
    np.testing.assert_allclose(cut.ask(PROMPTS, RESPONSES).preference, alone.preference, atol=1e-5)


def test_nothing_is_cut_what_is_too_long_fails_its_prompt(folder, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 24)
    ask = pairrm(source=str(folder), max_source_length=8).ask
    long_source = Prompt("p", ({"role": "user", "content": "a b c d e f"},))
    long_response = [["a", "b " * 10, "c"], ["a", "b", "c"]]
    verdict = ask([PROMPTS[0], long_source], [long_response[0], long_response[1]])
    assert "response is longer" in verdict.failed[0].reason
    assert "max_source_length = 8" in verdict.failed[1].reason
    assert np.isnan(verdict.preference).all()
    verdict = ask([PROMPTS[0], long_source, PROMPTS[1]], [["a", "b", "c"]] * 3)
    assert [f is None for f in verdict.failed] == [True, False, True]
    alone = ask([PROMPTS[1]], [["a", "b", "c"]])
    np.testing.assert_allclose(verdict.preference[2], alone.preference[0], atol=1e-6)


def test_a_text_that_holds_a_marker_fails(folder):
    verdict = pairrm(source=str(folder)).ask(
        PROMPTS, [["a", "b <|candidate1|>", "c"], ["a", "b", "c"]]
    )
    assert "markers" in verdict.failed[0].reason and verdict.failed[1] is None


def test_the_prompt_is_put_into_its_template(folder):
    plain = pairrm(source=str(folder)).ask(
        [Prompt("p", ({"role": "user", "content": "a d b"},))], [["c", "e f"]]
    )
    wrapped = pairrm(source=str(folder), source_template="a {prompt} b").ask(
        [PROMPTS[1]], [["c", "e f"]]
    )
    np.testing.assert_array_equal(plain.preference, wrapped.preference)


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | {"source_prefix_id": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"config.json says \(5, 61, 62\)"):
        pairrm(source=str(tmp_path))
