"""Judging portion by portion: what a verdict's parts say, and what an oracle says of its own portions."""

import numpy as np
import pytest

from ssppo_jax.data import EncodedPrompt
from ssppo_jax.judge_phase import concatenated, judge, part_stats
from ssppo_jax.oracles.protocol import Journal, consult
from ssppo_jax.types import Failed, Prompt, Verdict

HALF = np.full((2, 2, 2), 0.5, np.float32)
FIRST = np.array([[[0, 0.6], [0.6, 0]], [[0, 0.2], [0.2, 0]]], np.float32)  # asymmetry


def prompts(n):
    return [Prompt(f"p{i}", ({"role": "user", "content": f"question {i}"},)) for i in range(n)]


def asymmetric(asked, responses):
    n = len(asked)
    return Verdict(HALF[:n], None, (None,) * n, {"asymmetry": FIRST[:n]})


def test_how_much_a_judge_favours_the_first_place_is_logged():
    verdict = asymmetric(prompts(2), None)
    stats = part_stats(verdict, [["a" * 9, "b" * 9], ["a", "b"]])
    assert stats == {
        "oracle/asymmetry/mean": pytest.approx(0.4),
        "oracle/asymmetry/mean_abs": pytest.approx(0.4),
        "oracle/asymmetry/length_correlation": pytest.approx(1.0),
    }
    assert part_stats(verdict._replace(parts=None), []) == {}


def test_a_rewards_parts_are_logged_as_their_means():
    verdict = Verdict(None, np.ones((2, 2)), (None, None), {"format": np.array([[0.0, 1.0], [0.5, 1.0]])})
    assert part_stats(verdict, [["a", "b"]] * 2) == {"reward/format": 0.625}


def test_parts_of_preferences_survive_the_journal_and_a_batch_that_failed_whole(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    asked, responses = prompts(2), [["a", "b"], ["c", "d"]]
    first = consult(asymmetric, asked, responses, journal=journal)
    again = consult(None, asked, responses, journal=Journal(tmp_path / "journal.jsonl"))
    for verdict in (first, again):
        np.testing.assert_array_equal(verdict.parts["asymmetry"], FIRST)
    broken = Verdict(HALF * np.nan, None, (Failed("x"),) * 2)
    both = concatenated([broken, first])
    assert np.isnan(both.parts["asymmetry"][:2]).all()
    np.testing.assert_array_equal(both.parts["asymmetry"][2:], FIRST)


@pytest.mark.parametrize(("at_once", "calls"), [(None, [5]), (2, [2, 2, 1])])
def test_an_oracle_may_say_how_many_prompts_one_call_takes(at_once, calls, monkeypatch):
    monkeypatch.setenv("SSPPO_PROGRESS", "off")
    seen = []

    def oracle(asked, responses):
        seen.append(len(asked))
        return Verdict(None, np.zeros((len(asked), 2)), (None,) * len(asked))

    if at_once:
        oracle.at_once = at_once
    encoded = [EncodedPrompt(p, np.array([1]), np.uint32(0)) for p in prompts(5)]
    verdict = judge(oracle, encoded, [["a", "b"]] * 5, journal=None, identity="")
    assert seen == calls and len(verdict.failed) == 5
