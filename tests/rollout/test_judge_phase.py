"""Judging portion by portion: what a verdict's parts say, and what an oracle says of its own
portions."""

import threading

import numpy as np
import pytest
from ml_collections import ConfigDict

from ssppo_jax.data import EncodedPrompt
from ssppo_jax.errors import ConfigError, UserError
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.protocol import Oracle, concatenated, consult, open_journal
from ssppo_jax.rollout.judge import PrefetchJudge, build_oracle, judge, part_stats
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
    verdict = Verdict(
        None, np.ones((2, 2)), (None, None), {"format": np.array([[0.0, 1.0], [0.5, 1.0]])}
    )
    assert part_stats(verdict, [["a", "b"]] * 2) == {"reward/format": 0.625}


def test_parts_of_preferences_survive_the_journal_and_a_batch_that_failed_whole(tmp_path):
    journal = open_journal(tmp_path / "journal.jsonl")
    asked, responses = prompts(2), [["a", "b"], ["c", "d"]]
    first = consult(Oracle(asymmetric), asked, responses, journal=journal)
    again = consult(
        Oracle(None), asked, responses, journal=open_journal(tmp_path / "journal.jsonl")
    )
    for verdict in (first, again):
        np.testing.assert_array_equal(verdict.parts["asymmetry"], FIRST)
    broken = Verdict(HALF * np.nan, None, (Failed("x"),) * 2)
    both = concatenated([broken, first])
    assert np.isnan(both.parts["asymmetry"][:2]).all()
    np.testing.assert_array_equal(both.parts["asymmetry"][2:], FIRST)


@pytest.mark.parametrize(("at_once", "calls"), [(64, [5]), (2, [2, 2, 1])])
def test_an_oracle_may_say_how_many_prompts_one_call_takes(at_once, calls, monkeypatch):
    monkeypatch.setenv("SSPPO_PROGRESS", "off")
    seen = []

    def ask(asked, responses):
        seen.append(len(asked))
        return Verdict(None, np.zeros((len(asked), 2)), (None,) * len(asked))

    oracle = Oracle(ask, at_once=at_once)
    verdict = judge(oracle, encoded(5), [["a", "b"]] * 5, journal=None, identity="")
    assert seen == calls and len(verdict.failed) == 5


def encoded(n):
    return [EncodedPrompt(p, np.array([1]), np.uint32(0)) for p in prompts(n)]


class Slow:
    """Rewards nothing, remembers who it was asked about, and waits to be let go."""

    def __init__(self):
        self.asked, self.entered, self.go = [], threading.Event(), threading.Event()

    def __call__(self, asked, responses):
        self.entered.set()
        assert self.go.wait(10)
        self.asked += [p.id for p in asked]
        return Verdict(None, np.zeros((len(asked), 2)), (None,) * len(asked))


def test_what_is_judged_ahead_is_found_in_the_journal(tmp_path):
    slow, texts = Slow(), [["a", "b"]] * 4
    oracle, journal = Oracle(slow, at_once=1), open_journal(tmp_path / "journal.jsonl")
    slow.go.set()
    with PrefetchJudge(oracle, journal=journal, identity="x") as ahead:
        ahead.add(encoded(2), texts[:2])
        ahead.pool.submit(lambda: None).result()  # both were judged
        assert slow.asked == ["p0", "p1"]
    judge(oracle, encoded(4), texts, journal=journal, identity="x")
    assert slow.asked == ["p0", "p1", "p2", "p3"]


def test_leaving_ends_with_the_call_under_way_and_the_rest_is_judged_afterwards(tmp_path):
    slow, texts = Slow(), [["a", "b"]] * 4
    oracle, journal = Oracle(slow, at_once=1), open_journal(tmp_path / "journal.jsonl")
    with PrefetchJudge(oracle, journal=journal, identity="x") as ahead:
        ahead.add(encoded(4), texts)
        assert slow.entered.wait(10)
        threading.Timer(0.2, slow.go.set).start()
    assert slow.asked == ["p0"]
    assert judge(oracle, encoded(4), texts, journal=journal, identity="x").failed == (None,) * 4
    assert slow.asked == ["p0", "p1", "p2", "p3"]


def test_an_oracle_on_the_runs_own_devices_is_not_asked_ahead(tmp_path):
    slow, journal = Slow(), open_journal(tmp_path / "journal.jsonl")
    with PrefetchJudge(Oracle(slow, on_device=True), journal=journal, identity="x") as ahead:
        ahead.add(encoded(1), [["a", "b"]])
    assert slow.asked == []


def test_what_fails_ahead_fails_again_where_it_is_noticed(tmp_path):
    def ask(asked, responses):
        raise UserError("no such model")

    broken, journal = Oracle(ask), open_journal(tmp_path / "journal.jsonl")
    with PrefetchJudge(broken, journal=journal, identity="x") as ahead:
        ahead.add(encoded(1), [["a", "b"]])
    with pytest.raises(UserError, match="no such model"):
        judge(broken, encoded(1), [["a", "b"]], journal=journal, identity="x")


def test_a_configured_factory_that_returns_a_plain_function_is_refused(monkeypatch):
    monkeypatch.setitem(ORACLES, "old", lambda: asymmetric)
    with pytest.raises(ConfigError, match="oracle old: its factory returned a function"):
        build_oracle(ConfigDict({"oracle": {"name": "old"}}))
