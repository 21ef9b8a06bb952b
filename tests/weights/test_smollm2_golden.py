"""Decoders against implementations we did not write: numbers stored by tests/golden/make_*.py."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssppo_jax.models.decoder import Decoder, output_kernel
from ssppo_jax.models.logprobs import logits_of, token_logprobs
from ssppo_jax.models.policy import make_apply
from ssppo_jax.sampling.choose import SamplingParams
from ssppo_jax.sampling.sampler import make_generate
from ssppo_jax.types import FINISH_EOS, FINISH_LENGTH, Prompts
from ssppo_jax.weights import hf
from ssppo_jax.weights.source import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
ANSWERS = (
    "1. Stay hydrated: Drink plenty of water, especially during the heat.",
    "The capital of France is Paris.",
)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "smollm2.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def model(smollm2_folder):
    arch = hf.read_arch(smollm2_folder)
    return Decoder(arch), jax.tree.map(jnp.asarray, hf.load_params(smollm2_folder, arch))


@pytest.fixture(scope="module")
def tokenizer(smollm2_folder):
    return load_tokenizer(smollm2_folder)


def padded(rows, fill):
    """Ragged rows -> [B,P] int32 right-padded with `fill`, and their lengths."""
    tokens = np.full((len(rows), max(map(len, rows))), fill, np.int32)
    for row, values in zip(tokens, rows, strict=True):
        row[: len(values)] = values
    return tokens, np.array([len(values) for values in rows], np.int32)


@jax.jit
def prompt_logp(params, hidden, targets):
    """[B,P,D], [B,P] -> log p(targets), [B,P]."""
    return token_logprobs(
        hidden[:, None], params["embed"]["embedding"].T, targets[:, None], chunk=8192
    ).logp[:, 0]


@pytest.mark.model
@pytest.mark.parametrize(
    "which", [range(7), range(7, 8)], ids=["seven short prompts", "one over 512 tokens"]
)
def test_token_logprobs_equal_an_independent_float32_implementation(which, golden, model):
    decoder, params = model
    tokens, length = padded([golden[f"ids_{i}"] for i in which], fill=2)
    assert len(which) > 1 or length[0] > 512
    hidden = jax.jit(lambda p, *x: decoder.apply({"params": p}, *x).prompt)(params, tokens, length)
    logp = np.asarray(prompt_logp(params, hidden[:, :-1], tokens[:, 1:]))
    for row, i in zip(logp, which, strict=True):
        expected = golden[f"logp_{i}"]
        np.testing.assert_allclose(row[: len(expected)], expected, rtol=0, atol=1e-3)


@pytest.mark.model
def test_completions_that_share_a_prompt_score_as_the_independent_implementation_does(
    golden, model
):
    decoder, params = model
    prompt, length = padded([golden["ids_0"], golden["ids_1"]], fill=7)
    completion, size = padded([golden["greedy_0"], golden["greedy_1"]], fill=7)
    out = jax.jit(lambda p, *x: decoder.apply({"params": p}, *x))(
        params, prompt, length, completion[:, None]
    )
    last = jnp.take_along_axis(out.prompt, (length - 1)[:, None, None], axis=1)
    hidden = jnp.concatenate([last, out.completion[:, 0, :-1]], axis=1)
    logits = logits_of(hidden, output_kernel(params, decoder.arch))
    logp = np.asarray(
        jnp.take_along_axis(jax.nn.log_softmax(logits), completion[..., None], axis=-1)[..., 0]
    )
    for i in range(2):
        np.testing.assert_allclose(
            logp[i, : size[i]], golden[f"greedy_logp_{i}"], rtol=0, atol=1e-3
        )
        np.testing.assert_array_equal(logits[i, : size[i]].argmax(-1), golden[f"greedy_{i}"])


@pytest.mark.model
def test_sampler_and_trainer_agree_on_the_same_tokens_whatever_the_batch(golden, model):
    """Responses in one batch; scored together, and one prompt alone in a wider bucket, its samples
    swapped."""
    decoder, params = model
    prompt, length = padded([golden["ids_0"], golden["ids_1"], golden["ids_2"]], fill=2)
    sampling = SamplingParams(temperature=0.8, top_p=0.95, max_new_tokens=12)
    generate = jax.jit(
        make_generate(decoder, num_samples=2, eos_ids=(2,), pad_id=2, sampling=sampling)
    )
    prompts = Prompts(prompt, length, np.arange(3, dtype=np.uint32))
    samples = jax.device_get(generate(params, prompts, jax.random.key(0)))
    mask = (np.arange(12) < samples.length[..., None]).astype(np.float32)
    score = jax.jit(make_apply(decoder))
    together = score(params, prompt, length, samples.tokens, mask)[0].logp
    np.testing.assert_allclose(together * mask, samples.logp, atol=1e-3, rtol=0)
    wide = np.pad(prompt[1:2], ((0, 0), (0, 9)), constant_values=5)
    alone = score(params, wide, length[1:2], samples.tokens[1:2, ::-1], mask[1:2, ::-1])[0].logp
    np.testing.assert_allclose(alone * mask[1:2, ::-1], samples.logp[1:2, ::-1], atol=1e-3, rtol=0)


@pytest.mark.model
def test_greedy_answers_are_the_reference_answers(golden, model, tokenizer):
    decoder, params = model
    prompt, length = padded([golden["ids_0"], golden["ids_1"]], fill=2)
    greedy = SamplingParams(temperature=0.0, max_new_tokens=48)
    generate = jax.jit(
        make_generate(decoder, num_samples=1, eos_ids=(2,), pad_id=2, sampling=greedy)
    )
    samples = jax.device_get(
        generate(params, Prompts(prompt, length, np.arange(2, dtype=np.uint32)), jax.random.key(0))
    )
    for i, finish in enumerate((FINISH_LENGTH, FINISH_EOS)):
        tokens = samples.tokens[i, 0, : samples.length[i, 0]]
        np.testing.assert_array_equal(tokens, golden[f"greedy_{i}"])
        assert tokenizer.decode(tokens, skip_special_tokens=True).startswith(ANSWERS[i])
        assert samples.finish[i, 0] == finish


@pytest.mark.model
def test_the_tokenizer_gives_the_stored_ids_back(golden, tokenizer):
    """The ids were compared with llama.cpp's when the golden file was made."""
    assert golden["llama_cpp_agrees"]
    for i, text in enumerate(golden["texts"]):
        ids = tokenizer(str(text), add_special_tokens=False)["input_ids"]
        np.testing.assert_array_equal(ids, golden[f"ids_{i}"])
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.model
def test_the_chat_template_writes_the_stored_texts(golden, tokenizer):
    for chat, text in zip(golden["chats"], golden["texts"], strict=True):
        made = tokenizer.apply_chat_template(
            json.loads(str(chat)), tokenize=False, add_generation_prompt=True
        )
        assert made == text
