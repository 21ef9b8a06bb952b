import json

import numpy as np
import pytest

from ssppo_jax.config import load_function
from ssppo_jax.errors import ConfigError, GateError, UserError
from ssppo_jax.oracles import protocol
from ssppo_jax.types import Failed, Prompt, Verdict

GOOD = np.array([[0.5, 0.8, 0.1], [0.2, 0.5, 0.6], [0.9, 0.4, 0.5]], np.float32)  # intransitive


def preferences(*rows, failed=None):
    return Verdict(np.stack(rows), None, failed or (None,) * len(rows))


def prompts(n):
    return [Prompt(f"p{i}", ({"role": "user", "content": f"question {i}"},)) for i in range(n)]


def spoiled(i, j, value):
    matrix = GOOD.copy()
    matrix[i, j] = value
    return matrix


# the contract


def test_an_oracle_needs_no_more_than_a_function():
    oracle = protocol.Oracle(Counting())
    assert oracle.check(prompts(2)) is None and oracle.place(None) is None
    assert not oracle.on_device and oracle.at_once == 64


def test_a_factory_that_returns_a_plain_function_is_told_what_to_return():
    with pytest.raises(ConfigError, match=r"oracle mine: .* a function. Return Oracle\(ask\) of"):
        protocol.require_oracle(lambda prompts, responses: None, "mine")
    oracle = protocol.Oracle(Counting())
    assert protocol.require_oracle(oracle, "mine") is oracle


# checks


def test_a_sound_verdict_passes_unchanged():
    verdict = protocol.checked(preferences(GOOD, GOOD.T), (2, 3))
    np.testing.assert_array_equal(verdict.preference, np.stack([GOOD, GOOD.T]))
    assert verdict.preference.dtype == np.float32
    assert verdict.failed == (None, None) and verdict.reward is None


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (spoiled(0, 1, np.nan), "not finite"),
        (spoiled(0, 1, np.inf), "not finite"),
        (spoiled(1, 1, 0.50001), "itself"),
        (spoiled(0, 1, 0.80001), "do not sum to 1"),
        (np.array([[0.5, 1.2, 0.1], [-0.2, 0.5, 0.6], [0.9, 0.4, 0.5]]), "outside"),
        (np.array([[0.5, -1e-4, 0.1], [1 + 1e-4, 0.5, 0.6], [0.9, 0.4, 0.5]]), "outside"),
    ],
)
def test_what_is_not_a_preference_becomes_failed_and_nan(bad, reason):
    verdict = protocol.checked(preferences(GOOD, bad, GOOD))
    assert verdict.failed[::2] == (None, None) and reason in verdict.failed[1].reason
    assert np.isnan(verdict.preference[1]).all()
    np.testing.assert_array_equal(verdict.preference[[0, 2]], np.stack([GOOD, GOOD]))


def test_the_oracles_own_failure_keeps_its_reason_whatever_the_numbers_say():
    verdict = protocol.checked(
        preferences(GOOD, GOOD * np.nan, failed=(Failed("too long"), Failed("refused")))
    )
    assert [f.reason for f in verdict.failed] == ["too long", "refused"] and np.isnan(
        verdict.preference
    ).all()


def test_a_reward_must_be_finite():
    verdict = protocol.checked(Verdict(None, np.array([[1.0, -3.0], [0.0, np.inf]]), (None, None)))
    assert verdict.failed[0] is None and "not finite" in verdict.failed[1].reason
    assert np.isnan(verdict.reward[1]).all() and verdict.reward[0].tolist() == [1.0, -3.0]


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(None, None, (None,)),
        Verdict(GOOD[None], np.zeros((1, 3)), (None,)),
        Verdict(GOOD[None], None, (None, None)),
        Verdict(np.zeros((1, 3)), None, (None,)),
        Verdict(None, np.zeros((1, 2)), (None,)),
    ],
)
def test_a_malformed_record_is_an_error_not_a_failure(verdict):
    with pytest.raises(UserError, match="oracle"):
        protocol.checked(verdict, (1, 3))


# failures


def test_failed_prompts_are_dropped_whole_and_counted():
    failed = (None, Failed("slow"), None, Failed("odd"), Failed("slow"))
    verdict = preferences(GOOD, GOOD, GOOD.T, GOOD, GOOD, failed=failed)
    kept = protocol.drop_failed(verdict, max_failed_fraction=0.6)
    assert kept.rows.tolist() == [0, 2]
    assert kept.dropped == 3 and kept.reasons == {"slow": 2, "odd": 1}
    np.testing.assert_array_equal(kept.verdict.preference, np.stack([GOOD, GOOD.T]))
    assert kept.verdict.failed == (None, None) and kept.verdict.reward is None


def test_too_many_failures_abort_with_counts_and_reasons():
    failed = (None, Failed("slow"), Failed("odd"), Failed("slow"))
    verdict = Verdict(None, np.zeros((4, 2)), failed)
    with pytest.raises(GateError, match=r"3 of 4 prompts[\s\S]*2 x slow[\s\S]*1 x odd"):
        protocol.drop_failed(verdict, max_failed_fraction=0.74)
    assert protocol.drop_failed(verdict, max_failed_fraction=0.75).rows.tolist() == [0]


def test_exactly_the_allowed_fraction_is_allowed():
    failed = (Failed("x"),) * 29 + (None,) * 71  # 0.29 * 100 < 29 in floating point
    kept = protocol.drop_failed(Verdict(None, np.zeros((100, 2)), failed), max_failed_fraction=0.29)
    assert kept.dropped == 29


def test_no_failures_never_abort():
    verdict = Verdict(None, np.zeros((2, 2)), (None, None))
    assert protocol.drop_failed(verdict, max_failed_fraction=0.0).dropped == 0


# both orders


def test_an_always_first_judge_says_exactly_one_half():
    shown_first = np.ones((2, 3, 3))
    both = protocol.symmetrise(shown_first, shown_first.swapaxes(1, 2))
    assert (both.preference == 0.5).all() and (both.asymmetry == 1).all()


def test_both_orders_make_a_preference_of_any_judge():
    q = np.random.default_rng(1).random((4, 5, 5))
    q[:, range(5), range(5)] = 0.5
    both = protocol.symmetrise(q, q.swapaxes(1, 2))
    assert protocol.checked(Verdict(both.preference, None, (None,) * 4)).failed == (None,) * 4
    assert both.preference[0, 1, 2] == pytest.approx((q[0, 1, 2] + 1 - q[0, 2, 1]) / 2, abs=1e-7)


def test_a_rock_paper_scissors_judge_stays_intransitive():
    game = np.array([[[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]]])
    p = protocol.symmetrise(game, game.swapaxes(1, 2)).preference
    assert p[0, 0, 1] == p[0, 1, 2] == p[0, 2, 0] == 1


def test_asymmetry_statistics_by_hand():
    asymmetry = np.zeros((1, 3, 3))
    asymmetry[0, 0, 1], asymmetry[0, 0, 2], asymmetry[0, 1, 2] = -0.2, 0.4, 0.6
    asymmetry[0, 2, 0] = 99.0  # below the diagonal: not counted twice
    stats = protocol.asymmetry_stats(asymmetry, np.array([[1, 2, 4]]))  # joint lengths 3, 5, 6
    assert stats["mean"] == pytest.approx(0.8 / 3) and stats["mean_abs"] == pytest.approx(0.4)
    expected = np.corrcoef([0.2, 0.4, 0.6], [3, 5, 6])[0, 1]
    assert stats["length_correlation"] == pytest.approx(expected)


def test_asymmetry_statistics_survive_failed_and_constant_pairs():
    asymmetry = np.full((2, 2, 2), np.nan)
    assert protocol.asymmetry_stats(asymmetry, np.ones((2, 2))) == dict(
        mean=0, mean_abs=0, length_correlation=0
    )
    asymmetry[0] = 0.3
    stats = protocol.asymmetry_stats(asymmetry, np.ones((2, 2)))
    assert stats["mean"] == pytest.approx(0.3) and stats["length_correlation"] == 0


# journal


class Counting:
    """Prefers by length, and remembers what it was asked."""

    def __init__(self, fail=()):
        self.asked, self.fail = [], set(fail)

    def __call__(self, prompts, responses):
        self.asked += [p.text for p in prompts]
        n = np.array([[len(text) for text in group] for group in responses])
        gap = (n[:, :, None] - n[:, None]) / 3.0
        failed = tuple(Failed("refused") if p.text in self.fail else None for p in prompts)
        return Verdict((1 / (1 + np.exp(-gap))).astype(np.float32), None, failed)


RESPONSES = [["a", "bbb"], ["cc", ""], ["d\u2028d", "\ud800 e"]]


def ask(judge, path, n=3):
    journal = protocol.open_journal(path)
    oracle = protocol.Oracle(judge)
    return protocol.consult(oracle, prompts(n), RESPONSES[:n], journal=journal, identity="length")


def test_a_judgement_is_never_asked_for_twice_and_comes_back_bit_for_bit(tmp_path):
    path = tmp_path / "run" / "journal.jsonl"
    first, again = Counting(), Counting()
    part = ask(first, path, n=1)
    whole = ask(first, path)
    assert first.asked == ["question 0", "question 1", "question 2"]
    once_more = ask(again, path)
    assert again.asked == []
    np.testing.assert_array_equal(once_more.preference, whole.preference)
    np.testing.assert_array_equal(part.preference[0], whole.preference[0])
    direct = protocol.consult(protocol.Oracle(Counting()), prompts(3), RESPONSES)
    np.testing.assert_array_equal(direct.preference, whole.preference)
    assert whole.preference.dtype == np.float32


def test_another_oracle_prompt_response_order_or_meta_is_another_judgement():
    prompt = prompts(1)[0]
    name = protocol.oracle_identity("sentiment", {"temperature": 0.25})
    base = protocol.journal_key(name, prompt, ["a", "b"])
    turns = ({"role": "system", "content": "be brief"}, *prompt.messages)
    others = [
        protocol.journal_key(
            protocol.oracle_identity("sentiment", {"temperature": 0.5}), prompt, ["a", "b"]
        ),
        protocol.journal_key(name, prompts(2)[1], ["a", "b"]),
        protocol.journal_key(name, prompt, ["b", "a"]),
        protocol.journal_key(name, prompt, ["a", "b "]),
        protocol.journal_key(name, Prompt("p0", prompt.messages, {"answer": "4"}), ["a", "b"]),
        protocol.journal_key(name, Prompt("p0", turns), ["a", "b"]),
    ]
    assert len({base, *others}) == 7
    assert base == protocol.journal_key(name, Prompt("another id", prompt.messages), ["a", "b"])


def test_keyword_order_does_not_change_the_oracle():
    assert protocol.oracle_identity("x", {"a": 1, "b": 2}) == protocol.oracle_identity(
        "x", {"b": 2, "a": 1}
    )


def test_a_torn_last_line_is_dropped_and_only_its_prompt_is_asked_again(tmp_path):
    path = tmp_path / "journal.jsonl"
    whole = ask(Counting(), path)
    path.write_bytes(path.read_bytes()[:-9])
    assert protocol.open_journal(path).torn
    oracle = Counting()
    np.testing.assert_array_equal(ask(oracle, path).preference, whole.preference)
    assert oracle.asked == ["question 2"]
    journal = protocol.open_journal(path)  # the new line was not glued to the torn one
    assert not journal.torn and len(journal.known) == 3


@pytest.mark.parametrize(
    "line", ["not json", "[1]", '{"key": "k"}', '{"key": "k", "value": 3}', ""]
)
def test_a_bad_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "journal.jsonl"
    ask(Counting(), path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    with pytest.raises(UserError, match=r"journal\.jsonl:2"):
        protocol.open_journal(path)


def test_failures_are_reported_but_asked_again_by_the_next_run(tmp_path):
    path = tmp_path / "journal.jsonl"
    verdict = ask(Counting(fail=["question 1"]), path)
    assert [f and f.reason for f in verdict.failed] == [None, "refused", None]
    assert np.isnan(verdict.preference[1]).all() and len(path.read_text().splitlines()) == 2
    oracle = Counting()
    assert ask(oracle, path).failed == (None, None, None) and oracle.asked == ["question 1"]


def test_equal_prompts_in_one_batch_are_asked_once(tmp_path):
    oracle, journal = Counting(), protocol.open_journal(tmp_path / "j")
    twins = [prompts(1)[0], prompts(2)[1], prompts(1)[0]]
    texts = [["a", "bb"], ["c", "d"], ["a", "bb"]]
    verdict = protocol.consult(protocol.Oracle(oracle), twins, texts, journal=journal)
    assert oracle.asked == ["question 0", "question 1"]
    np.testing.assert_array_equal(verdict.preference[0], verdict.preference[2])


def test_rewards_are_journalled_too(tmp_path):
    def judge(prompts, responses):
        return Verdict(
            None, np.array([[0.1, len(group[1])] for group in responses], np.float32), (None,) * 3
        )

    first = ask(judge, tmp_path / "j")
    again = ask(None, tmp_path / "j")  # would fail if it were called
    assert again.preference is None
    np.testing.assert_array_equal(first.reward, again.reward)


def test_an_out_of_range_answer_is_not_journalled(tmp_path):
    verdict = ask(lambda p, r: Verdict(np.full((3, 2, 2), 2.0), None, (None,) * 3), tmp_path / "j")
    assert all("outside" in f.reason for f in verdict.failed) and not (tmp_path / "j").exists()


def test_ragged_groups_and_unhashable_meta_are_refused():
    with pytest.raises(UserError, match="sizes"):
        protocol.consult(protocol.Oracle(Counting()), prompts(2), [["a"], ["b", "c"]])
    with pytest.raises(UserError, match="'p0' cannot be journalled"):
        protocol.journal_key("x", Prompt("p0", prompts(1)[0].messages, {"answer": {1, 2}}), ["a"])


def test_a_journal_line_is_plain_ascii_json(tmp_path):
    path = tmp_path / "journal.jsonl"
    ask(Counting(), path)
    for line in path.read_bytes().splitlines():
        assert sorted(json.loads(line.decode("ascii"))) == ["key", "value"]


MISTAKEN = """
import numpy as np
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.types import Verdict

def raises():
    return Oracle(lambda prompts, responses: prompts[0].nothing)

def one_argument():
    return Oracle(lambda responses: None)

def a_list():
    return Oracle(lambda prompts, responses: [[0.0, 1.0]])

def no_tie():
    return Oracle(lambda p, r: Verdict(np.full((len(p), 2, 2), 0.7), None, (None,) * len(p)))

def wrong_shape():
    return Oracle(lambda p, r: Verdict(None, np.zeros(len(p)), (None,) * len(p)))

def neither():
    return Oracle(lambda p, r: Verdict(None, None, (None,) * len(p)))

def words():
    return Oracle(lambda p, r: Verdict(None, [["good", "bad"]] * len(p), (None,) * len(p)))

def ragged():
    return Oracle(lambda p, r: Verdict(None, [[[1.0], [1.0, 2.0]]] * len(p), (None,) * len(p)))

def no_failures():
    return Oracle(lambda p, r: Verdict(None, np.zeros((len(p), 2)), None))

def refuses():
    def check(prompts):
        return {}["nothing"]

    return Oracle(fine().ask, check)

def fine():
    return Oracle(lambda p, r: Verdict(None, np.zeros((len(p), 2)), (None,) * len(p)))
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raises", r"theirs\.py:7: AttributeError: .*nothing.*ask\(prompts, responses\) returns"),
        ("one_argument", "takes 1 positional argument but 2 were given"),
        ("a_list", r"ask returned a list; return Verdict\(preference, reward, failed\)"),
        ("wrong_shape", r"oracle .*theirs\.py:wrong_shape: .*reward of shape \(1,\)"),
        ("neither", r"oracle .*theirs\.py:neither: an oracle must return exactly one"),
        ("words", r"oracle .*theirs\.py:words: could not convert string to float"),
        ("ragged", r"oracle .*theirs\.py:ragged: setting an array element with a sequence"),
        ("no_failures", r"oracle .*theirs\.py:no_failures: "),
        ("refuses", r"theirs\.py:[0-9]+: KeyError: 'nothing' \(in .*its check of the prompts"),
        ("no_tie", "preference of a response over itself is not 0.5"),
    ],
)
def test_an_oracle_of_a_users_file_is_tried_before_a_run(tmp_path, name, told):
    file = tmp_path / "theirs.py"
    file.write_text(MISTAKEN)
    prompts = [Prompt("p", ({"role": "user", "content": "Say something."},))]
    for wanted in (name, "fine"):
        spec = f"{file}:{wanted}"
        oracle = protocol.require_oracle(load_function(spec)(), spec)
        if wanted == "fine":
            oracle.check(prompts)
        else:
            with pytest.raises(UserError, match=told):
                oracle.check(prompts)
