"""Pairs through the whole loop, and the oracle at work beside the sampler."""

import threading

import numpy as np
import pytest
from small_runs import byte_oracle, run_with

from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.runtime import Runtime

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_pair_loss_takes_the_higher_reward_for_the_winner(tmp_path):
    _, _, rows = run_with(tmp_path, byte_oracle(), train__iterations=1)
    share = [
        [np.mean([c < "\x80" for c in row[side]] or [0]) for side in ("winner", "loser")]
        for row in rows
    ]
    assert all(w >= l for w, l in share) and any(w > l for w, l in share)
    assert {row["p_win"] for row in rows} <= {0.5, 1.0}


def test_the_oracle_is_at_work_before_the_last_prompts_are_sampled(tmp_path, monkeypatch):
    asked, calls, made = threading.Event(), [], Runtime.make_sampler

    def watched(runtime, **settings):
        sampler = made(runtime, **settings)

        def counted(step):
            def call(*args):
                calls.append(None)
                assert len(calls) < 4 or asked.wait(20), "four batches sampled, and nothing judged"
                return step(*args)

            return call

        both = {name: counted(getattr(sampler, name)) for name in ("start", "refill")}
        return sampler._replace(**both) if settings["num_samples"] == 3 else sampler

    def ask(prompts, responses):
        if len(responses[0]) == 3:  # not an evaluation's
            asked.set()
        return byte_oracle().ask(prompts, responses)

    monkeypatch.setattr(Runtime, "make_sampler", watched)
    few = {
        "checkpoint__final": "false",
        "train__iterations": 1,
        "sampling__batch_size": 4,
        "eval__num_samples": 1,
        "eval__final_num_samples": 1,
    }
    run_with(tmp_path, Oracle(ask), loss="sspo", **few)
    assert len(calls) == 4
    assert [f.name for f in tmp_path.glob("checkpoints/step_*")] == [
        "step_00000001"
    ]  # of two: no final one
