"""Random models of every family as transformers writes them: the same logits over 600 tokens, the
same answers."""

import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ssppo_jax.models.decoder import Decoder, output_kernel
from ssppo_jax.models.family import FAMILIES
from ssppo_jax.models.hf_config import arch_from_hf
from ssppo_jax.models.logprobs import logits_of
from ssppo_jax.sampling.choose import SamplingParams
from ssppo_jax.sampling.sampler import make_generate
from ssppo_jax.types import Prompts
from ssppo_jax.weights import hf

with np.load(pathlib.Path(__file__).parents[1] / "golden/decoders.npz", allow_pickle=False) as file:
    GOLDEN = dict(file)
IDS, LENGTHS = GOLDEN["ids"], GOLDEN["lengths"]
CASES = [str(case) for case in GOLDEN["cases"]]
EVERY = 5


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """(name, arch, params, tensors): a model read from config.json and tensors under their Hugging
    Face names."""
    name = request.param
    arch = arch_from_hf(json.loads(str(GOLDEN[f"{name}/config"])))
    mark = f"{name}/tensor/"
    tensors = {
        key.removeprefix(mark): value for key, value in GOLDEN.items() if key.startswith(mark)
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return name, arch, hf.load_params(tmp_path, arch), tensors


def test_every_family_is_held_against_transformers():
    assert {json.loads(str(GOLDEN[f"{case}/config"]))["model_type"] for case in CASES} == set(
        FAMILIES
    )


def test_logits_over_600_tokens_padded_and_not_equal_transformers(case):
    name, arch, params, _ = case

    @jax.jit
    def score(params, ids, length):
        hidden = Decoder(arch).apply({"params": params}, ids, length).prompt[:, ::EVERY]
        return logits_of(hidden, output_kernel(params, arch), arch.final_softcap)

    logits = score(params, IDS, LENGTHS)
    for row, length in enumerate(LENGTHS):
        want = GOLDEN[f"{name}/logits_{row}"]
        np.testing.assert_allclose(logits[row, : len(want)], want, rtol=0, atol=2e-4)
        assert len(want) == length // EVERY


def test_greedy_answers_equal_those_of_transformers_token_for_token(case):
    name, arch, params, _ = case
    want = GOLDEN[f"{name}/greedy"]
    width = IDS.shape[1] // 10  # slots beyond the prompt's 40 tokens are padding
    prompts = Prompts(
        IDS[:, :width], np.full(len(IDS), 40, np.int32), np.arange(len(IDS), dtype=np.uint32)
    )
    sampling = SamplingParams(temperature=0.0, max_new_tokens=want.shape[1])
    generate = make_generate(
        Decoder(arch), num_samples=2, eos_ids=(arch.vocab_size,), pad_id=0, sampling=sampling
    )
    tokens = jax.jit(generate)(params, prompts, jax.random.key(0)).tokens
    np.testing.assert_array_equal(tokens, np.stack([want, want], axis=1))


def test_an_export_is_what_transformers_wrote(case, tmp_path):
    _, arch, params, tensors = case
    folder = hf.save_params(params, arch, tmp_path / "out")
    assert hf.read_arch(folder) == arch
    written = load_file(folder / "model.safetensors")
    assert written.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(written[key], value)
