"""What scoring puts into a batch: log-probs under pi_t, and under the reference that was chosen."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ssppo_jax import schema
from ssppo_jax.distributed.mesh import make_mesh
from ssppo_jax.rollout.rows import batch_of
from ssppo_jax.rollout.score import score_batch
from ssppo_jax.steps import Scored
from ssppo_jax.types import Samples

NOW, START = -1.0, -3.0  # log-prob of every token under pi_t and under the initial policy


def load(**overrides):
    given = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return schema.load("smoke", given)


def scored(config):
    """A batch of eight rows of two full responses, scored by a model that gives its parameters."""
    tokens = np.ones((8, 2, 3), np.int32)
    logp, length = np.full(tokens.shape, NOW, np.float32), np.full((8, 2), 3, np.int32)
    samples = Samples(tokens, length, logp, logp, np.zeros((8, 2), np.int8))
    encoded = [SimpleNamespace(tokens=np.ones(2, np.int32))] * 8

    def score(params, prompt, prompt_length, completion, mask):
        return Scored(params * mask, 0 * mask)

    arch = SimpleNamespace(num_layers=2, mlp_dim=8)
    runtime = SimpleNamespace(
        config=config, arch=arch, mesh=make_mesh((1, 1, 1), jax.devices()[:1])
    )
    initial = None if config.train.reference_storage == "off" else lambda: np.float32(START)
    batch = batch_of(encoded, samples)
    return score_batch(runtime, score, batch, samples, np.float32(NOW), initial)[0]


@pytest.mark.parametrize(
    ("overrides", "reference"),
    [
        ({"loss": "grpo", "loss.beta": 0.1}, START),  # TRL's and verl's beta
        ({"loss": "grpo", "loss.beta": 0.1, "train.reference": "iteration"}, START),
        ({"loss": "grpo", "loss.beta": 0.1, "train.kl_reference": "iteration"}, NOW),
        ({"loss": "grpo", "train.reference_storage": "off"}, NOW),  # no KL, and nothing loaded
        ({"loss": "inpo"}, START),
        ({"loss": "inpo", "loss.tau": 0.0, "train.reference": "iteration"}, NOW),
        ({"loss": "nash_md"}, START),
        ({"loss": "s_sppo"}, NOW),
        ({"loss": "dpo", "train.reference": "initial"}, START),
        ({"loss": "dpo", "train.kl_reference": "initial"}, NOW),  # a pair loss has none
    ],
    ids=str,
)
def test_the_reference_of_a_loss_is_the_one_chosen_for_its_kind(overrides, reference):
    batch = scored(load(**overrides))
    np.testing.assert_array_equal(batch.old_logp, NOW)
    np.testing.assert_array_equal(batch.ref_logp, reference)


def test_a_kl_to_the_policy_that_sampled_is_said_to_do_nothing_at_first():
    here = {"loss": "grpo", "loss.beta": 0.1}
    assert schema.cautions(load(**here)) == []
    (caution,) = schema.cautions(load(**here, **{"train.kl_reference": "iteration"}))
    assert "with one update per rollout loss.beta=0.1 does nothing" in caution
