"""Log-probs of given continuations against the trainer's own, and a local judge by them."""

import jax
import numpy as np
import pytest
import tiny
from small_benchmarks import jsonl, load

from ssppo_jax.benchmark.contract import Request
from ssppo_jax.benchmark.judges import build_judge
from ssppo_jax.benchmark.likelihood import token_scores
from ssppo_jax.models.decoder import Decoder
from ssppo_jax.sampling.choose import SamplingParams


def test_scores_are_the_trainers_and_greedy_is_what_greedy_sampling_writes():
    prompts = tiny.make_prompts([3, 7], 8)
    sampling = SamplingParams(temperature=0.0, max_new_tokens=9)
    ends = np.array(tiny.generator(2, sampling)(prompts, jax.random.key(0)).tokens)
    ends[:, 1] = np.random.default_rng(0).integers(8, tiny.V, (2, 9))  # what sampling did not write
    decoder = Decoder(tiny.ARCHES["tied"])
    scores = tiny.jit(lambda *arrays: token_scores(decoder, tiny.PARAMS["tied"], *arrays))
    logp, greedy = scores(prompts.tokens, prompts.length, ends)
    want = tiny.scorer()(prompts, ends, np.ones(ends.shape, np.float32)).logp
    np.testing.assert_allclose(logp, want, atol=2e-5)
    assert greedy[:, 0, 0].all() and not greedy[:, 1].all()


def test_a_local_judge_gives_the_probabilities_of_the_verdicts(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"question": "1+1?", "answer": "#### 2"}])
    config, _ = load("gsm8k", {"benchmark.path": path}, judge="local:random:tiny")
    judge, kept = build_judge(config), []
    requests = [
        Request([{"role": "user", "content": text}], ("m", "M"), 1) for text in ("?", "x" * 600)
    ]
    reply, long = judge.ask(requests, lambda request, reply: kept.append(reply))
    assert sum(reply.chances.values()) == pytest.approx(1.0)
    assert reply.text == max(reply.chances, key=reply.chances.get)
    assert kept == [reply] and "longer" in long.reason
    assert judge.identity["model"] == "random:tiny" and not judge.paid
