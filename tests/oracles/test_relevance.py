"""Relevance: cosines of vectors that are written down here, and keywords counted by hand."""

import numpy as np
import pytest

from ssppo_jax.oracles import relevance as relevance_module
from ssppo_jax.oracles.protocol import consult
from ssppo_jax.oracles.relevance import keywords, relevance, stems
from ssppo_jax.types import Prompt

VECTORS = {"sea": [2.0, 0.0], "wave": [3.0, 4.0], "tax": [0.0, 1.0], "law": [-1.0, 1.0]}


def prompt(text):
    first = {"role": "user", "content": "Something else entirely"}
    return Prompt(text, (first, {"role": "assistant", "content": "."}, _user(text)))


def _user(text):
    return {"role": "user", "content": text}


class Written:
    """An embedder whose vectors are known."""

    @classmethod
    def load(cls, source, *, max_length):
        assert (source, max_length) == ("embedded:minilm", 7)
        return cls()

    def embed(self, texts):
        return np.array([VECTORS[text] for text in texts], np.float32)


def test_the_reward_is_the_cosine_of_the_last_turn_and_the_response(monkeypatch):
    monkeypatch.setattr(relevance_module, "SentenceEmbedder", Written)
    asked = [prompt("sea"), prompt("law")]
    found = consult(relevance(max_length=7), asked, [["sea", "wave", "tax"], ["tax", "sea", "law"]])
    half = 2**-0.5
    np.testing.assert_allclose(found.reward, [[1, 0.6, 0], [half, -half, 1]], atol=1e-6)


def test_keywords_are_counted_by_their_first_five_letters_and_common_words_are_not():
    asked = [prompt("How do the VACCINES teach a body to fight disease?"), prompt("Why is it so?")]
    texts = [
        "Vaccination teaches bodies.",  # vacci, teach; bodies -> bodie is no body
        "I'm sorry! Fighting a disease with a body of teaching and vaccines",
    ]
    found = consult(keywords(), asked, [texts, texts])
    np.testing.assert_allclose(found.reward, [[2 / 5, 1], [1, 1]], rtol=1e-6)
    assert stems("What would you write about the e-mail of 1999, Ünsal?") == {"mail", "ünsal"}


@pytest.mark.parametrize("text", ["", "?!", "the of and"])
def test_a_response_without_a_word_takes_up_nothing(text):
    assert consult(keywords(), [prompt("Describe the ocean")], [[text]]).reward == 0
