"""Win rates, selection and gating of K judged responses."""

import dataclasses
import functools

import numpy as np
import pytest

from ssppo_jax.errors import ConfigError
from ssppo_jax.losses.gates import GATES, calibrate, power
from ssppo_jax.rollout.pairs import (
    GATE_LEVELS,
    WIN_RATE_ESTIMATORS,
    make_pairs,
    mean_win_rate,
    score_bt,
    scores,
    select,
)
from ssppo_jax.rollout.similarity import cosine, relu_cosine


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def random_preference(b, k, seed=0, scale=2.0):
    """Antisymmetric scores, so P + P^T = 1, and nothing transitive about them."""
    s = scale * np.random.default_rng(seed).normal(size=(b, k, k))
    return sigmoid(s - s.swapaxes(1, 2)).astype(np.float32)


def random_similarity(b, k, seed=1):
    s = np.random.default_rng(seed).uniform(0, 1, (b, k, k))
    return (0.5 * (s + s.swapaxes(1, 2))).astype(np.float32)


THREE = np.array([[[0.5, 0.9, 0.6], [0.1, 0.5, 0.3], [0.4, 0.7, 0.5]]], np.float32)
ALIKE = np.array([[[1.0, 0.2, 0.8], [0.2, 1.0, 0.4], [0.8, 0.4, 1.0]]], np.float32)


# ---- by pencil -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "win_rate", "target"),
    [  # winner 0, loser 1, S_wl = 0.2; means of the others' similarity: 0.5 and 0.3
        ({}, [2.0 / 3, 0.3], [0.5 + 0.8 / 6, 0.5 - 0.8 * 0.2]),
        ({"include_self": False}, [0.75, 0.2], [0.7, 0.5 - 0.8 * 0.3]),
        ({"gate_level": "none"}, [2.0 / 3, 0.3], [2.0 / 3, 0.3]),
        ({"gate_level": "group_mean"}, [2.0 / 3, 0.3], [0.5 + 0.5 / 6, 0.5 - 0.7 * 0.2]),
        (
            {"gate_level": "pairwise"},
            [2.0 / 3, 0.3],
            [(0.5 + 0.82 + 0.52) / 3, (0.18 + 0.5 + 0.38) / 3],
        ),
        (
            {"gate_level": "pairwise", "include_self": False},
            [0.75, 0.2],
            [(0.82 + 0.52) / 2, (0.18 + 0.38) / 2],
        ),
        ({"win_rate_estimator": "hard"}, [2.5 / 3, 0.5 / 3], [0.5 + 0.8 / 3, 0.5 - 0.8 / 3]),
    ],
)
def test_three_responses_by_pencil(options, win_rate, target):
    pairs, _ = make_pairs(THREE, ALIKE, **options)
    assert (pairs.winner[0], pairs.loser[0], pairs.tied[0]) == (0, 1, False)
    np.testing.assert_allclose(pairs.win_rate, [win_rate], rtol=1e-6)
    np.testing.assert_allclose(pairs.target, [target], rtol=1e-6)
    np.testing.assert_allclose(pairs.similarity, [0.2], rtol=1e-6)


def test_p_win_is_the_ungated_comparison_of_winner_and_loser():
    assert make_pairs(THREE, ALIKE)[0].p_win == pytest.approx([0.9])
    assert make_pairs(THREE, ALIKE, win_rate_estimator="hard")[0].p_win == pytest.approx([1.0])


def test_statistics_are_means_over_groups():
    even = np.full((1, 3, 3), 0.5, np.float32)
    _, stats = make_pairs(
        np.concatenate([THREE, even]), np.concatenate([ALIKE, ALIKE]), drop_tied=True
    )
    raw = 2.0 / 3 - 0.3
    assert stats == pytest.approx(
        {
            "pairs/margin_raw": raw / 2,
            "pairs/margin_gated": 0.8 * raw / 2,
            "pairs/similarity": 0.2,
            "pairs/tied": 0.5,
            "pairs/inverted": 0.0,
            "pairs/amplified": 0.0,
            "pairs/dropped": 0.5,
        }
    )


@pytest.mark.parametrize("name", sorted(WIN_RATE_ESTIMATORS))
@pytest.mark.parametrize("gate_level", GATE_LEVELS)
def test_pairs_equal_a_loop_written_from_the_equations(name, gate_level):
    b, k = 4, 5
    preference, similarity = random_preference(b, k), random_similarity(b, k)
    pairs, _ = make_pairs(preference, similarity, win_rate_estimator=name, gate_level=gate_level)
    for row in range(b):
        p, s = preference[row].astype(float), similarity[row].astype(float)
        logit = np.log(p / (1 - p))
        score = [sum(logit[i, j] - logit[j, i] for j in range(k)) / k for i in range(k)]
        if name == "score_bt":
            p = np.array([[sigmoid(score[i] - score[j]) for j in range(k)] for i in range(k)])
        if name == "hard":
            p = np.array(
                [[0.5 if i == j else float(p[i, j] > 0.5) for j in range(k)] for i in range(k)]
            )
            score = p.sum(axis=1)
        w, l = int(np.argmax(score)), int(np.argmin(score))
        assert (pairs.winner[row], pairs.loser[row]) == (w, l)
        for slot, i in enumerate((w, l)):
            rate = sum(p[i, j] for j in range(k)) / k
            others = sum(s[i, j] for j in range(k) if j != i) / (k - 1)
            target = {
                "none": rate,
                "pair": 0.5 + (1 - s[w, l]) * (rate - 0.5),
                "group_mean": 0.5 + (1 - others) * (rate - 0.5),
                "pairwise": sum(0.5 + (1 - s[i, j]) * (p[i, j] - 0.5) for j in range(k)) / k,
            }[gate_level]
            assert pairs.win_rate[row, slot] == pytest.approx(rate, rel=2e-6)
            assert pairs.target[row, slot] == pytest.approx(target, rel=2e-6)


# ---- identities (ALGORITHMS, section 7) ----------------------------------------------------------


@pytest.mark.parametrize("name", sorted(WIN_RATE_ESTIMATORS))
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_win_rates_sum_to_half_the_group_and_stay_off_the_ends(name, include_self, k):
    """Identity 1: sum_i P_i = K/2, and with the self pair P_i is in [1/(2K), 1 - 1/(2K)]."""
    extreme = (random_preference(6, k) > 0.5) * 1.0
    extreme[:, range(k), range(k)] = 0.5
    for preference in (random_preference(6, k).astype(float), extreme):
        preference = 0.5 * (preference + 1 - preference.swapaxes(1, 2))
        rate = mean_win_rate(WIN_RATE_ESTIMATORS[name](preference), include_self=include_self)
        np.testing.assert_allclose(rate.sum(axis=1), k / 2, rtol=1e-12)
        low = 1 / (2 * k) if include_self else 0.0
        assert np.all((rate >= low - 1e-12) & (rate <= 1 - low + 1e-12))


def test_five_samples_and_certain_verdicts_reach_the_papers_range():
    """Identity 1 at K = 5: win rates 0.9 and 0.1, hence targets of +-400 at beta = 1e-3."""
    order = np.arange(5)
    certain = np.where(order[:, None] < order, 1.0, np.where(order[:, None] > order, 0.0, 0.5))[
        None
    ]
    pairs, _ = make_pairs(certain, None, gate_level="none")
    assert (pairs.winner[0], pairs.loser[0]) == (0, 4)
    np.testing.assert_allclose((pairs.target - 0.5) / 1e-3, [[400, -400]], rtol=1e-6)


@pytest.mark.parametrize("gate", sorted(GATES))
def test_pairwise_gating_keeps_the_sum_and_group_mean_does_not(gate):
    """Identity 2: gating each P_ij by a symmetric S keeps P_ij + P_ji = 1, so the averages still
    sum to K/2."""
    b, k = 5, 4
    preference, similarity = random_preference(b, k).astype(float), random_similarity(b, k)
    gated = calibrate(preference, GATES[gate](similarity))
    np.testing.assert_allclose(gated + gated.swapaxes(1, 2), 1, rtol=1e-6)
    others = (similarity.sum(axis=2) - similarity[:, range(k), range(k)]) / (k - 1)
    targets = {
        "pairwise": mean_win_rate(gated),
        "group_mean": calibrate(mean_win_rate(preference), GATES[gate](others)),
    }
    for mode, target in targets.items():
        pairs, _ = make_pairs(preference, similarity, GATES[gate], gate_level=mode)
        chosen = np.stack([target[range(b), pairs.winner], target[range(b), pairs.loser]], axis=1)
        np.testing.assert_allclose(pairs.target, chosen, rtol=1e-6)
    np.testing.assert_allclose(targets["pairwise"].sum(axis=1), k / 2, rtol=1e-6)
    if gate != "threshold":  # no mean similarity here reaches its cutoff
        assert np.all(np.abs(targets["group_mean"].sum(axis=1) - k / 2) > 1e-4)


@pytest.mark.parametrize("mode", ["pair", "group_mean", "pairwise"])
def test_no_similarity_leaves_the_win_rates_and_full_similarity_makes_ties(mode):
    """Identity 3 on the data side: S = 0 gives the SPPO targets bit for bit, S = 1 gives 1/2."""
    preference = random_preference(6, 4)
    free, _ = make_pairs(preference, np.zeros((6, 4, 4), np.float32), gate_level=mode)
    np.testing.assert_array_equal(free.target, free.win_rate)
    full, _ = make_pairs(preference, np.ones((6, 4, 4), np.float32), gate_level=mode)
    np.testing.assert_array_equal(full.target, 0.5)


OPPOSED = np.array([[[1.0, -0.6, 0.8], [-0.6, 1.0, 0.4], [0.8, 0.4, 1.0]]], np.float32)


@pytest.mark.parametrize(
    ("options", "target"),
    [  # THREE's win rates are 2/3 and 0.3, S_wl = -0.6; the others' means are 0.1 and -0.1
        ({}, [0.5 + 1.6 / 6, 0.5 - 1.6 * 0.2]),
        ({"gate_level": "group_mean"}, [0.5 + 0.9 / 6, 0.5 - 1.1 * 0.2]),
        ({"gate_level": "pairwise"}, [(0.5 + 1.14 + 0.52) / 3, (-0.14 + 0.5 + 0.38) / 3]),
        ({"gate": power}, [0.5 + 2.56 / 6, 0.5 - 2.56 * 0.2]),
        ({"gate": GATES["threshold"]}, [2.0 / 3, 0.3]),
    ],
)
def test_negative_cosines_reach_the_gate_and_relu_cosine_cuts_them(options, target):
    """Identity 4 by pencil: `cosine` amplifies below 0, `relu_cosine` treats it as unrelated."""
    pairs, stats = make_pairs(THREE, OPPOSED, **options)
    np.testing.assert_allclose(pairs.target, [target], rtol=1e-6)
    np.testing.assert_allclose(pairs.similarity, [-0.6], rtol=1e-6)
    wider = abs(target[0] - target[1]) > 2.0 / 3 - 0.3 + 1e-6
    assert stats["pairs/amplified"] == wider

    vectors = np.array([[1.0, 0.0], [-0.6, 0.8], [0.0, 1.0]], np.float32)  # cosines -0.6, 0, 0.8
    texts = [["a", "b", "c"]]
    plain, cut = (measure(texts, lambda flat: vectors) for measure in (cosine, relu_cosine))
    kept, _ = make_pairs(THREE, plain, **options)
    rectified, stats = make_pairs(THREE, cut, **options)
    assert kept.similarity == pytest.approx([-0.6]) and rectified.similarity == [0.0]
    assert stats["pairs/amplified"] == 0
    if options.get("gate") is not GATES["threshold"]:
        assert np.all(kept.target != rectified.target)


@pytest.mark.parametrize("gate", sorted(GATES))
def test_pair_gating_shrinks_and_never_flips(gate):
    """Identity 4, through the whole function."""
    preference = random_preference(20, 5)
    last = np.inf
    for s in np.linspace(0, 1, 6):
        pairs, _ = make_pairs(preference, np.full((20, 5, 5), s, np.float32), GATES[gate])
        assert np.all((pairs.target - 0.5) * (pairs.win_rate - 0.5) >= 0)
        assert np.all(np.abs(pairs.target - 0.5) <= last)
        last = np.abs(pairs.target - 0.5)


def test_two_samples_average_the_verdict_with_a_half():
    """Identity 12: K = 2 gives P_w = (1/2 + P_wl)/2 and P_l = 1 - P_w."""
    preference = random_preference(8, 2)
    pairs, _ = make_pairs(preference, None, gate_level="none")
    np.testing.assert_allclose(pairs.win_rate[:, 0], (0.5 + pairs.p_win) / 2, rtol=1e-6)
    np.testing.assert_allclose(pairs.win_rate.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(pairs.p_win, preference.max(axis=(1, 2)), rtol=1e-6)


def test_aggregated_scores_double_a_transitive_score():
    """Identity 12: with s_ij = a_i - a_j, `score_bt` gives sigmoid(2 (a_i - a_j))."""
    a = np.random.default_rng(3).normal(size=(4, 5))
    difference = a[:, :, None] - a[:, None, :]
    np.testing.assert_allclose(score_bt(sigmoid(difference)), sigmoid(2 * difference), rtol=1e-9)


# ---- selection and ties --------------------------------------------------------------------------


def test_selection_is_by_mean_score_and_an_inverted_pair_is_counted():
    """The papers rank by mean score and train on win rates: one certain win outweighs two narrow
    losses."""
    p = np.array(
        [
            [0.5, 0.999999, 0.3, 0.3],
            [1e-6, 0.5, 0.95, 0.95],
            [0.7, 0.05, 0.5, 0.5],
            [0.7, 0.05, 0.5, 0.5],
        ]
    )
    pairs, stats = make_pairs(np.stack([p, random_preference(1, 4)[0]]), None, gate_level="none")
    assert (pairs.winner[0], pairs.loser[0]) == (0, 1)
    np.testing.assert_allclose(pairs.win_rate[0], [0.525, 0.6], rtol=1e-5)
    assert stats["pairs/inverted"] == 0.5


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ([1.0, 3.0, 3.0, 0.0, 0.0], (1, 3, False)),  # first index among equals, at both ends
        ([2.0, 2.0, 2.0], (0, 1, True)),
        ([2.0, 2.0 + 1e-9, 2.0], (0, 1, True)),  # rounding is no preference
        ([0.0, 0.0, 1.0], (2, 0, False)),
        ([1.0, 0.0], (0, 1, False)),
        ([0.0, 1.8e-6, 2.5e-6], (1, 0, False)),
    ],
)
def test_among_equals_the_first_index_wins(score, expected):
    winner, loser, tied = select(np.array([score]))
    assert (winner[0], loser[0], tied[0]) == expected


def test_winner_and_loser_always_differ():
    rng = np.random.default_rng(0)
    for scale in (0.0, 1e-7, 1e-6, 1.0):
        winner, loser, _ = select(scale * rng.integers(0, 4, (200, 4)))
        assert np.all(winner != loser)


def test_a_cycle_is_a_tie_and_stays_intransitive():
    """Rock, paper, scissors: equal mean scores and win rates of 1/2, whatever the strength of the
    comparisons."""
    cycle = np.array([[[0.5, 0.8, 0.2], [0.2, 0.5, 0.8], [0.8, 0.2, 0.5]]], np.float32)
    pairs, stats = make_pairs(cycle, None, gate_level="none")
    assert pairs.tied[0] and pairs.keep[0] and stats["pairs/tied"] == 1
    np.testing.assert_allclose(pairs.target, 0.5, rtol=1e-6)
    np.testing.assert_allclose(pairs.p_win, 0.8, rtol=1e-6)
    dropped, _ = make_pairs(cycle, None, gate_level="none", drop_tied=True)
    assert dropped.tied[0] and not dropped.keep[0]


def test_relabelling_the_responses_relabels_the_pair():
    preference, similarity = random_preference(5, 4), random_similarity(5, 4)
    order = np.array([2, 0, 3, 1])
    shuffled, _ = make_pairs(preference[:, order][:, :, order], similarity[:, order][:, :, order])
    pairs, _ = make_pairs(preference, similarity)
    np.testing.assert_array_equal(order[shuffled.winner], pairs.winner)
    np.testing.assert_array_equal(order[shuffled.loser], pairs.loser)
    np.testing.assert_allclose(shuffled.target, pairs.target, rtol=1e-6)


def test_certain_verdicts_give_finite_scores():
    certain = np.array([[[0.5, 1.0], [0.0, 0.5]]])
    assert np.all(np.isfinite(scores(certain)))
    for name in WIN_RATE_ESTIMATORS:
        pairs, _ = make_pairs(certain, None, win_rate_estimator=name, gate_level="none")
        assert np.all(np.isfinite(pairs.target)) and pairs.winner[0] == 0


def test_gate_keywords_are_bound_by_the_caller():
    pairs, _ = make_pairs(THREE, ALIKE, functools.partial(power, exponent=3.0))
    np.testing.assert_allclose(pairs.target[0, 0], 0.5 + 0.8**3 / 6, rtol=1e-6)


def test_no_groups_left_is_no_error():
    pairs, stats = make_pairs(np.zeros((0, 3, 3)), np.zeros((0, 3, 3)))
    assert pairs.target.shape == (0, 2) and stats["pairs/tied"] == 0


def test_results_are_frozen_and_float32():
    pairs, _ = make_pairs(THREE.astype(np.float64), ALIKE)
    assert {getattr(pairs, f).dtype for f in ("win_rate", "target", "p_win", "similarity")} == {
        np.dtype(np.float32)
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        pairs.winner = 0


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"win_rate_estimator": "pairwse"}, "did you mean 'pairwise'"),
        ({"gate_level": "groupmean"}, "did you mean 'group_mean'"),
        ({"gate_level": "mean of all"}, "use one of pair, group_mean, pairwise, none"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(options, message):
    with pytest.raises(ConfigError, match=message):
        make_pairs(THREE, ALIKE, **options)


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("preference", "similarity", "message"),
    [
        (changed(THREE, (0, 0, 1), np.nan), ALIKE, r"rows \[0\] are not P"),
        (changed(THREE, (0, 0, 1), np.inf), ALIKE, r"rows \[0\] are not P"),
        (changed(THREE, (0, 0, 1), 1.2), ALIKE, r"rows \[0\] are not P"),
        (changed(THREE, (0, 0, 1), 0.8), ALIKE, "P \\+ P\\^T = 1"),
        (THREE[0], ALIKE, "K >= 2"),
        (np.full((2, 1, 1), 0.5), np.ones((2, 1, 1)), "sample at least 2"),
        (THREE, None, "needs a similarity matrix"),
        (THREE, ALIKE[:, :2, :2], "same samples"),
        (THREE, changed(ALIKE, (0, 0, 1), 0.5), "symmetric"),
        (THREE, changed(ALIKE, (0, 0, 1), np.nan), "symmetric"),
        (THREE, 3 * ALIKE, r"\[-1,1\]"),
    ],
)
def test_broken_matrices_are_refused(preference, similarity, message):
    with pytest.raises(ValueError, match=message):
        make_pairs(preference, similarity)
