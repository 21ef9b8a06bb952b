"""Every file of docs/examples does what its page says, and they train together."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from small_runs import MESH

from ssppo_jax import schema
from ssppo_jax.config import bind, load_module
from ssppo_jax.data import SOURCES
from ssppo_jax.losses import GATES, LOSSES
from ssppo_jax.models.decoder import Decoder
from ssppo_jax.models.family import FAMILIES
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.protocol import Oracle, checked
from ssppo_jax.runs.metrics import read_metrics
from ssppo_jax.sweep.run import sweep
from ssppo_jax.training.train import train
from ssppo_jax.types import Batch, Failed, Policy, Prompt
from ssppo_jax.weights import hf

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
oracle_is_a_record = pytest.mark.skipif(
    not dataclasses.is_dataclass(Oracle), reason="the oracle's contract is not a record yet"
)


def example(name):
    return str(EXAMPLES / f"{name}.py")


def load(name, **overrides):
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    return schema.load(example(name), given)


def one_pair():
    """A winner of two tokens and a loser of one, behind which the padding is not a number."""
    logp = np.array([[[-1.0, -2.0], [-3.0, np.nan]]], np.float32)
    ref = np.array([[[-1.5, -2.25], [-2.0, np.nan]]], np.float32)
    mask = np.array([[[1, 1], [1, 0]]], np.float32)
    pair, row = np.full((1, 2), 0.5, np.float32), np.ones(1, np.float32)
    fields = dict.fromkeys(("old_logp", "ref_logp", "init_logp"), ref)
    fields |= dict.fromkeys(("win_rate", "target", "advantage"), pair)
    fields |= dict.fromkeys(("p_win", "similarity", "weight"), row)
    tokens = np.zeros((1, 2, 2), np.int32)
    batch = Batch(tokens[:, 0], np.ones(1, np.int32), tokens, mask, **fields)
    return Policy(logp, np.ones((1, 2, 3), np.float32)), batch


def test_every_example_is_tried_here():
    tried = {"loss", "gate", "ratio_gate", "oracle", "source", "model", "sweep", "reward"}
    assert {file.stem for file in EXAMPLES.glob("*.py")} == tried


def test_the_loss_is_chosen_and_has_its_value_by_hand():
    config = load("loss", loss__margin="0.25")
    assert (config.loss.name, config.loss.beta, config.loss.margin) == ("mean_margin", 1.0, 0.25)
    policy, batch = one_pair()  # mean log-ratios: (0.5 + 0.25) / 2 and -1
    loss, terms = bind(LOSSES, config.loss)(policy, batch)
    np.testing.assert_allclose(loss.result(), np.log1p(np.exp(-(1.375 - 0.25))), rtol=1e-6)
    assert set(terms) == {"term/mean_margin"}


def test_the_losss_rule_is_checked():
    with pytest.raises(Exception, match=r"loss\.beta=0\.0: must be a number above 0"):
        load("loss", loss__beta="0")


def test_the_gate_keeps_what_is_unlike_and_ties_what_is_the_same():
    gate = bind(GATES, load("gate").pairs.gate)
    similarity = np.array([-0.5, 0.0, 0.6, 0.8, 1.0, 1.2], np.float32)
    np.testing.assert_allclose(gate(similarity), [1, 1, 1, 0.5, 0, 0], atol=1e-6)


def test_the_ratio_gates_slope_is_the_derivative_of_its_log():
    module, config = load_module(example("ratio_gate")), load("ratio_gate")
    assert config.loss.sspo_gate == "tanh_log"
    u = np.linspace(-2, 2, 9, dtype=np.float32)
    gated = module.tanh_log(u, 3.0)
    slope = jax.vmap(jax.grad(lambda x: module.tanh_log(x, 3.0).log_f))(u)
    np.testing.assert_allclose(gated.slope, slope, atol=1e-6)
    assert gated.slope[4] == 1 and gated.log_f[4] == 0


@oracle_is_a_record
def test_the_oracle_rewards_the_prompts_words_and_fails_where_there_are_none():
    oracle = bind(ORACLES, load("oracle").oracle)()
    prompts = [
        Prompt("a", ({"role": "user", "content": "Describe the sea"},)),
        Prompt("b", ({"role": "user", "content": "?"},)),
    ]
    verdict = checked(oracle.ask(prompts, [["the sea", "a lake"], ["x", "y"]]), (2, 2))
    np.testing.assert_allclose(verdict.reward[0], [2 / 3, 0.0], rtol=1e-6)
    assert verdict.failed == (None, Failed("no word of 3 letters"))


def test_the_rewards_of_the_page_are_those_by_hand():
    functions = f"{example('reward')}:says_the_number,{example('reward')}:is_short"
    oracle = ORACLES["python"](function=functions, weights=(1.0, 0.2))
    prompts = [Prompt("a", ({"role": "user", "content": "2 + 3?"},), {"answer": 5})]
    oracle.check(prompts)
    reward = checked(oracle.ask(prompts, [["5", "6" * 100]]), (1, 2)).reward
    np.testing.assert_allclose(reward, [[1 + 0.2 * (1 - 1 / 200), 0.1]], rtol=1e-6)


def test_the_source_has_an_answer_to_every_question():
    prompts = bind(SOURCES, load("source").data.source)()
    assert len({prompt.id for prompt in prompts}) == 64
    assert (prompts[-1].text, prompts[-1].meta) == ("What is 8 times 8?", {"answer": "64"})


def test_the_model_is_read_back_with_its_windows_and_computes(tmp_path):
    config = schema.load(f"{example('model')}:{tmp_path / 'model'}", {})
    arch = hf.read_arch(config.model.source)
    assert arch.family is FAMILIES["ministral"] and arch.sliding_layers == (0,)
    params = hf.load_params(config.model.source, arch, dtype=np.float32)
    tokens = np.arange(8, dtype=np.int32)[None]
    out = Decoder(arch).apply({"params": params}, tokens, np.array([8], np.int32))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(out))


def test_the_sweep_lists_its_runs(tmp_path, capsys):
    assert sweep(example("sweep"), tmp_path, {}, dry_run=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and sum("loss.name=mean_margin" in line for line in lines) == 4


@oracle_is_a_record
def test_loss_gate_oracle_and_source_train_together(tmp_path, own_cache):
    small = {"data.prompt_buckets": "256", "sampling.max_new_tokens": "6"}
    small |= {"sampling.num_samples": "3", "loss.name": "mean_margin"}
    config = schema.load(example("sweep"), MESH | small)
    train(config, tmp_path)
    losses = [
        r["values"]["loss"]
        for r in read_metrics(tmp_path / "metrics.jsonl")
        if r["phase"] == "train"
    ]
    assert losses and np.isfinite(losses).all()  # none, if all responses tied
