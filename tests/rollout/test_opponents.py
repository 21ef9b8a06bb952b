"""Opponents through the whole loop: what is sampled, judged and trained on."""

import numpy as np
import pytest
from small_runs import length_oracle, run_with, values

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("loss", ["nash_md", "xpo"])
def test_the_policy_meets_an_opponent(tmp_path, loss):
    settings = {
        "sampling__num_samples": 2,
        "train__reference": "initial",
        "train__micro_batches": 1,
    }
    _, log, rows = run_with(tmp_path, length_oracle(), loss=loss, **settings)
    assert len(rows) == 32 and all(row["policy"] != row["opponent"] for row in rows)
    assert any(row["p_win"] < 0.5 for row in rows) and any(
        row["p_win"] > 0.5 for row in rows
    )  # in order, not sorted
    assert max(score["sampler_gap/max"] for score in values(log, "score")) < 1e-5
    np.testing.assert_allclose(values(log, "train")[0]["ratio/max"], 1, atol=2e-5)
