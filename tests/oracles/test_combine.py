"""Several oracles as one: sums, gates, means, and who decides."""

import json

import numpy as np
import pytest

from ssppo_jax import oracles
from ssppo_jax.config import NonNegative
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.oracles.combine import combine
from ssppo_jax.oracles.protocol import Oracle, checked
from ssppo_jax.types import Failed, Prompt, Verdict

PROMPTS = [Prompt(f"p{i}", ({"role": "user", "content": "q"},)) for i in range(2)]
RESPONSES = [["a", "bb", "ccc"], ["dddd", "e", "ff"]]
LENGTH = np.array([[1, 2, 3], [4, 1, 2]], np.float32)
VOWEL = np.array([[1, 0, 0], [0, 1, 0]], np.float32)


def reward_oracle(values, fails=(), parts=None):
    def factory(*, scale: NonNegative = 1.0, kind: str = "x"):
        def ask(prompts, responses):
            failed = tuple(Failed("sick") if b in fails else None for b in range(len(prompts)))
            return Verdict(None, scale * values, failed, parts)

        return Oracle(ask)

    return factory


def preference_oracle(p):
    """P of the first over the second response; the third is even with both."""

    def factory():
        matrix = np.full((2, 3, 3), 0.5, np.float32)
        matrix[:, 0, 1], matrix[:, 1, 0] = p, 1 - p

        def ask(prompts, responses):
            return Verdict(matrix, None, (None, None))

        return Oracle(ask)

    return factory


@pytest.fixture(autouse=True)
def table(monkeypatch):
    made = {
        "length": reward_oracle(LENGTH),
        "vowel": reward_oracle(VOWEL, parts={"seen": 1 - VOWEL}),
        "sick": reward_oracle(LENGTH, fails=(1,)),
        "strong": preference_oracle(0.9),
        "weak": preference_oracle(0.4),
    }
    monkeypatch.setattr(oracles, "ORACLES", made | {"combine": combine})


def ask(*members, **settings):
    return checked(combine(members=json.dumps(members), **settings).ask(PROMPTS, RESPONSES), (2, 3))


def test_rewards_are_summed_with_their_weights_and_stay_visible():
    verdict = ask({"oracle": "length", "weight": 0.5, "scale": 2}, {"oracle": "vowel", "weight": 3})
    np.testing.assert_allclose(verdict.reward, LENGTH + 3 * VOWEL)
    assert set(verdict.parts) == {"length", "vowel", "vowel/seen"}
    assert verdict.failed == (None, None)
    np.testing.assert_array_equal(verdict.parts["length"], 2 * LENGTH)
    np.testing.assert_array_equal(verdict.parts["vowel/seen"], 1 - VOWEL)


def test_behind_a_gate_members_count_only_for_what_it_accepts():
    gated = ask({"oracle": "vowel", "weight": 10, "at_least": 1}, {"oracle": "length"})
    np.testing.assert_allclose(gated.reward, np.where(VOWEL == 1, 10 + LENGTH, 0))
    after = ask({"oracle": "length"}, {"oracle": "vowel", "weight": 10, "at_least": 1})
    # a gate at the end closes nothing
    np.testing.assert_allclose(after.reward, LENGTH + 10 * VOWEL)
    twice = ask(
        {"oracle": "length", "at_least": 2},
        {"oracle": "vowel", "at_least": 1},
        {"oracle": "sick", "weight": 7},
    )
    # "a" fails the first gate, the others the second
    np.testing.assert_allclose(twice.reward[0], [1, 2, 3])


def test_preferences_are_averaged_and_rewards_join_them_through_bradley_terry():
    p = ask({"oracle": "strong", "weight": 3}, {"oracle": "weak"}).preference
    np.testing.assert_allclose(p[:, 0, 1], (3 * 0.9 + 0.4) / 4, atol=1e-6)
    mixed = ask({"oracle": "strong"}, {"oracle": "length"}, temperature=2.0).preference
    np.testing.assert_allclose(mixed[0, 0, 1], (0.9 + 1 / (1 + np.exp(0.5))) / 2, atol=1e-6)


def test_a_member_decides_alone_where_it_is_sure():
    p = ask({"oracle": "strong", "margin": 0.3}, {"oracle": "weak"}).preference
    np.testing.assert_allclose(p[:, 0, 1], 0.9, atol=1e-6)
    p = ask({"oracle": "strong", "margin": 0.45}, {"oracle": "weak"}).preference
    np.testing.assert_allclose(p[:, 0, 1], 0.65, atol=1e-6)
    p = ask({"oracle": "weak", "margin": 0.05}, {"oracle": "strong", "margin": 0.05}).preference
    np.testing.assert_allclose(p[:, 0, 1], 0.4, atol=1e-6)  # the first that is sure


def test_a_gate_or_margin_that_would_do_nothing_is_refused():
    with pytest.raises(
        ConfigError, match="margin of length is of preferences, and all members give rewards"
    ):
        ask({"oracle": "length", "margin": 0.1}, {"oracle": "vowel"})
    with pytest.raises(
        ConfigError, match="at_least of length is of rewards, and a member gives preferences"
    ):
        ask({"oracle": "length", "at_least": 1}, {"oracle": "weak"})


def test_a_member_that_is_a_plain_function_is_refused(monkeypatch):
    monkeypatch.setitem(oracles.ORACLES, "old", lambda: lambda prompts, responses: None)
    with pytest.raises(ConfigError, match="oracle old: its factory returned a function"):
        combine(members='[{"oracle": "old"}]')


def test_a_prompt_fails_when_one_member_does():
    verdict = ask({"oracle": "length"}, {"oracle": "sick"})
    assert verdict.failed[0] is None and verdict.failed[1].reason == "sick: sick"
    assert np.isnan(verdict.reward[1]).all() and np.isfinite(verdict.reward[0]).all()


def test_checks_and_portions_are_those_of_the_members(monkeypatch):
    def picky():
        def ask(prompts, responses):
            raise AssertionError

        def check(prompts):
            raise DataError("no answer")

        return Oracle(ask, check, placed.append, on_device=True, at_once=3)

    placed = []

    monkeypatch.setitem(oracles.ORACLES, "picky", picky)
    made = combine(members='[{"oracle": "length"}, {"oracle": "picky"}]')
    made.place("mesh")
    assert placed == ["mesh"] and made.on_device
    assert not combine(members='[{"oracle": "length"}]').on_device
    assert made.at_once == 3 and combine(members='[{"oracle": "length"}]').at_once == 64
    with pytest.raises(DataError, match="no answer"):
        made.check(PROMPTS)


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ("[", "not JSON"),
        ("[]", "at least one; as in"),
        ('[{"weight": 1}]', "None is no name; allowed: combine, length"),
        ('["length"]', "list of objects"),
        (
            '[{"oracle": "combine"}]',
            "members: combine cannot be its own member",
        ),
        ('[{"oracle": "length", "sacle": 1}]', "length takes no 'sacle'; did you mean 'scale'"),
        ('[{"oracle": "length", "kind": 1}]', "length takes kind=1: expected str, as in 'x'"),
        ('[{"oracle": "length", "scale": true}]', "length takes scale=True: expected a number"),
        ('[{"oracle": "length", "scale": -1}]', "length.scale=-1: must be 0 or more"),
        ('[{"oracle": "length", "weight": null}]', "weight of length is None"),
        ('[{"oracle": "length", "weight": -1}]', "weight of length is -1"),
        ('[{"oracle": "length", "weight": 0}]', "must not all be 0"),
        ('[{"oracle": "length"}, {"oracle": "length"}]', "length more than once"),
        ('[{"oracle": "length", "at_least": 1, "margin": 0.1}]', "one of them"),
    ],
)
def test_mistakes_are_named_before_anything_runs(members, named):
    with pytest.raises(ConfigError, match=named):
        combine(members=members)
