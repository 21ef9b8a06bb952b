"""Rows are scored under the policy and the initial policy; numbers that are none end the run."""

import numpy as np
import pytest
from small_runs import configure

from ssppo_jax.errors import GateError
from ssppo_jax.rollout.score import score_batch
from ssppo_jax.runtime import build_runtime
from ssppo_jax.steps import Scored
from ssppo_jax.types import Batch, Samples

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("params, whose", [("good", "the initial policy"), ("bad", "the policy")])
def test_log_probs_that_are_not_finite_end_the_run_with_whose_they_are(params, whose):
    runtime = build_runtime(configure(train__micro_batches=1))
    rows = np.zeros((8, 2, 6), np.float32)
    batch = Batch(*(rows for _ in Batch._fields))._replace(
        prompt=np.ones((8, 256), np.int32),
        prompt_length=np.full(8, 3, np.int32),
        completion=rows.astype(np.int32),
        mask=np.where(np.arange(6) < 3, 1.0, rows).astype(np.float32),
        weight=np.ones(8, np.float32),
    )
    samples = Samples(*(rows for _ in Samples._fields))
    asked = []

    def score(params, prompt, length, completion, mask):
        logp = np.zeros(mask.shape, np.float32)
        logp[3, 1, 2] = np.nan if params == "bad" else 0.0
        asked.append(params)
        return Scored(logp, np.zeros_like(logp))

    with pytest.raises(GateError, match=rf"^{whose} of model 'random:tiny'.*to 1 of 8 prompts'"):
        score_batch(runtime, score, batch, samples, params, lambda: "bad")
    assert asked == (["good", "bad"] if params == "good" else ["bad"])
