"""Tabular games: their solutions against pencil and definition, and the project's losses played
against theory."""

import functools
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssppo_jax.errors import ConfigError, UserError
from ssppo_jax.losses import LOSSES

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments/nash"))
import game as games
from game import duality_gap, equilibrium, exact_batch, improve, opponent_batch, pair_batch

RNG = np.random.default_rng(0)
LOGITS = np.log([0.5, 0.3, 0.15, 0.05]).astype(np.float32)  # a pi_t that is far from uniform
SPPO = functools.partial(LOSSES["sppo"], beta=10.0)
BIASED = (0.1, 0.2, 0.4)  # margins of a cycle whose equilibrium is not uniform
S_SPPO = functools.partial(LOSSES["s_sppo"], beta=10.0, repulsion_weight=0.0)


def policies(rows, actions):
    return RNG.dirichlet(np.ones(actions), rows)


def update_with(loss, game, step_size=0.5, steps=1, **batch):
    def update(logits):
        rows = exact_batch(logits, game.preference, game.similarity, **batch)
        return improve(loss, logits, rows, step_size=step_size, steps=steps)

    return update


def play(update, start, iterations):
    return np.asarray(
        jax.jit(lambda x: games.play(update, x, iterations))(np.asarray(start, np.float32))
    )


# ---- games and their solutions ----


def test_the_equilibrium_of_a_cycle_is_the_pencil_one():
    game = games.rock_paper_scissors(0.1, 0.2, 0.4)
    assert (
        game.preference[1, 0] == 0.6
        and game.preference[2, 1] == 0.7
        and game.preference[0, 2] == 0.9
    )
    np.testing.assert_allclose(equilibrium(game.preference), [2 / 7, 4 / 7, 1 / 7], atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_no_policy_beats_an_equilibrium(seed):
    p = games.random_skew(7, seed, scale=2.0).preference
    solved = equilibrium(p)
    assert solved.min() >= 0 and solved.sum() == pytest.approx(1)
    assert (policies(50, 7) @ p @ solved).max() <= 0.5 + 1e-9
    assert duality_gap(solved, p) == pytest.approx(0, abs=1e-9)


def test_the_duality_gap_is_its_definition():
    p = games.random_skew(5, 1).preference
    policy = policies(1, 5)[0]
    wins = [
        a @ p @ policy for a in np.eye(5)
    ]  # P(a > policy); the extremes over policies are at pure ones
    losses = [policy @ p @ a for a in np.eye(5)]
    assert duality_gap(policy, p) == pytest.approx(max(wins) - min(losses))
    rock_or_uniform = duality_gap(
        np.array([[1, 0, 0], [1 / 3] * 3]), games.rock_paper_scissors().preference
    )
    np.testing.assert_allclose(rock_or_uniform, [1, 0], atol=1e-12)


def test_games_are_what_their_names_say():
    winner = games.condorcet_winner(6, 0)
    assert (winner.preference[0, 1:] > 0.5).all()
    np.testing.assert_allclose(equilibrium(winner.preference), np.eye(6)[0], atol=1e-9)
    narrow = games.narrow_winner(4).preference
    assert (narrow[0, 1:] > 0.5).all() and narrow.mean(1).argmax() == 1
    ordered = games.bradley_terry(np.array([0.0, 2.0, -1.0])).preference
    assert ordered[1, 0] == pytest.approx(1 / (1 + np.exp(-2)), rel=1e-6)
    assert equilibrium(ordered).argmax() == 1
    a, b, c = (games.random_skew(5, seed).preference for seed in (0, 0, 1))
    assert (a == b).all() and (a != c).any()


def test_paraphrases_differ_only_among_themselves():
    base = games.rock_paper_scissors()
    game = games.paraphrased(base, 2, similarity=0.9, margin=0.3)
    np.testing.assert_array_equal(game.preference[::2, ::2], base.preference)
    np.testing.assert_array_equal(
        game.preference[1::2, ::2][~np.eye(3, dtype=bool)], base.preference[~np.eye(3, dtype=bool)]
    )
    np.testing.assert_allclose(game.preference[[0, 2, 4], [1, 3, 5]], 0.8)
    np.testing.assert_allclose(game.similarity[0], [1, 0.9, 0, 0, 0, 0])


@pytest.mark.parametrize(
    "preference, similarity, words",
    [
        (np.full((2, 3), 0.5), None, "shape"),
        (np.full((1, 1), 0.5), None, "A >= 2"),
        (np.full((2, 2), 0.6), None, "P \\+ P\\^T"),
        (np.array([[0.5, 1.2], [-0.2, 0.5]]), None, "in \\[0,1\\]"),
        (np.full((2, 2), np.nan), None, "in \\[0,1\\]"),
        (np.full((2, 2), 0.5), np.array([[1, 0.2], [0.3, 1]]), "symmetric"),
        (np.full((2, 2), 0.5), np.eye(3), "shape"),
        (np.full((2, 2), 0.5), np.array([[1, -0.2], [-0.2, 1]]), "in \\[0,1\\]"),
    ],
)
def test_a_matrix_that_is_no_game_is_refused(preference, similarity, words):
    with pytest.raises(UserError, match=words):
        games.Game(preference, similarity)


def test_the_calibrated_game_is_constant_sum_for_every_two_policies():
    game = games.random_skew(6, 2)
    one, two = policies(20, 6), policies(20, 6)
    calibrated = game.calibrated
    value = np.einsum("ra,ab,rb->r", one, calibrated, two)
    np.testing.assert_allclose(
        value + np.einsum("ra,ab,rb->r", two, calibrated, one), 1, atol=1e-12
    )
    raw = np.einsum("ra,ab,rb->r", one, game.preference, two)
    assert np.abs(value - raw).max() > 0.01
    i, j = 1, 4
    assert calibrated[i, j] == pytest.approx(
        0.5 + (1 - game.similarity[i, j]) * (game.preference[i, j] - 0.5)
    )


def test_equilibria_of_the_calibrated_game_move_with_similarity():
    p = games.rock_paper_scissors().preference
    s = np.eye(3)
    s[0, 1] = s[1, 0] = 0.5  # rock and paper alike: paper's margin over rock is halved
    np.testing.assert_allclose(equilibrium(games.Game(p, s).calibrated), [0.4, 0.4, 0.2], atol=1e-9)
    np.testing.assert_array_equal(games.Game(p).calibrated, p)
    np.testing.assert_array_equal(games.Game(p, np.ones((3, 3))).calibrated, 0.5)


def payoff(one, two, p, s, weight):
    return one @ p @ two - weight * one @ s @ one + weight * two @ s @ two


@pytest.mark.parametrize("weight", [0.0, 0.02, 0.3, 3.0])
def test_a_repelled_equilibrium_is_one_and_nearly_one_of_the_calibrated_game(weight):
    game = games.random_skew(6, 3)
    p, s = game.calibrated, game.similarity
    solved = games.repelled_equilibrium(p, s, weight)
    for other in np.concatenate([np.eye(6), policies(100, 6), 0.99 * solved + 0.01 * np.eye(6)]):
        assert payoff(other, solved, p, s, weight) <= 0.5 + 1e-7 * (1 + weight)
    eps = duality_gap(solved, p) / 2
    assert eps <= 2 * weight + 1e-7 and eps <= weight + 1e-7
    assert eps > 0.005 or weight < 0.1  # the bound is of something


def test_repulsion_makes_two_samples_of_the_equilibrium_differ():
    game = games.random_skew(6, 3)
    alike = [
        games.expected_similarity(
            games.repelled_equilibrium(game.calibrated, game.similarity, w), game.similarity
        )
        for w in (0.01, 0.1, 1.0)
    ]
    assert alike[0] - 0.01 > alike[1] > alike[2] + 0.01
    assert games.expected_similarity(
        np.array([0.5, 0.5]), np.array([[1, 0.2], [0.2, 1]])
    ) == pytest.approx(0.6)


def test_a_repulsion_that_is_not_convex_is_refused():
    s = np.array([[1, 0.9, 0.0], [0.9, 1, 0.9], [0.0, 0.9, 1]])
    with pytest.raises(UserError, match="positive semi-definite"):
        games.repelled_equilibrium(np.full((3, 3), 0.5), s, 0.1)


@pytest.mark.parametrize("weight", [0.03, 0.3, 3.0])
def test_nobody_gains_by_leaving_a_regularised_equilibrium(weight):
    p, reference = games.random_skew(6, 3).preference, policies(1, 6)[0]
    solved = games.regularised_equilibrium(p, reference, weight)
    cost = lambda x: weight * np.sum(x * (np.log(x) - np.log(reference)), axis=-1)  # noqa: E731
    others = np.concatenate([policies(200, 6), 0.99 * solved + 0.01 * np.eye(6)])
    assert (others @ p @ solved - cost(others) + cost(solved)).max() < 0.5
    assert solved.sum() == pytest.approx(1) and duality_gap(solved, p) > 0.01


def test_a_regularised_equilibrium_lies_between_the_reference_and_an_equilibrium():
    p, reference = games.rock_paper_scissors(*BIASED).preference, np.array([0.5, 0.25, 0.25])
    np.testing.assert_allclose(
        games.regularised_equilibrium(p, reference, 1e4), reference, atol=1e-4
    )
    np.testing.assert_allclose(
        games.regularised_equilibrium(p, reference, 1e-3), equilibrium(p), atol=1e-2
    )
    with pytest.raises(UserError, match="larger"):
        games.regularised_equilibrium(p, reference, 1e-12)


# ---- log Z and the exact update ----


@pytest.mark.parametrize("eta, tolerance", [(1.0, 1e-3), (0.1, 1e-3)])
def test_log_z_of_coin_flips_is_half_eta(eta, tolerance):
    """Identity 10, first half: as K grows."""
    k = 1000
    flips = np.triu(RNG.integers(0, 2, (k, k)), 1)
    rate = ((flips + np.tril(1 - flips.T, -1) + 0.5 * np.eye(k)).mean(1)).astype(np.float32)
    assert float(games.log_z(np.full(k, 1 / k, np.float32), rate, eta)) / eta == pytest.approx(
        0.5, abs=tolerance
    )


@pytest.mark.parametrize("eta, coefficient", [(1.0, 0.5413), (1000.0, 0.99309)])
def test_log_z_of_a_strict_order_is_between_half_eta_and_eta(eta, coefficient):
    """Identity 10, second half: log((e^eta - 1)/eta)."""
    k = 2000
    rate = ((np.arange(k) + 0.5) / k).astype(np.float32)
    assert float(games.log_z(np.full(k, 1 / k, np.float32), rate, eta)) / eta == pytest.approx(
        coefficient, abs=1e-4
    )


def test_the_exact_update_is_its_formula():
    game = games.random_skew(4, 0)
    policy = np.exp(LOGITS)
    expected = policy * np.exp(2.0 * game.preference @ policy)
    z = np.log(expected.sum())
    logp = games.exponential_weights(LOGITS, jnp.asarray(game.preference, jnp.float32), eta=2.0)
    np.testing.assert_allclose(logp, np.log(expected) - z, rtol=1e-5)
    assert float(
        games.log_z(policy, (game.preference @ policy).astype(np.float32), 2.0)
    ) == pytest.approx(z, rel=1e-5)


# ---- the project's losses on a table ----


@pytest.mark.parametrize(
    "name, keywords", [("sppo", {}), ("dpo", {}), ("ipo", {}), ("sppo_single", {})]
)
def test_a_loss_on_the_exact_batch_is_its_expectation_over_labelled_pairs(name, keywords):
    game = games.random_skew(4, 0)
    logits = jnp.asarray([0.3, -0.2, 0.1, 0.9], jnp.float32)
    batch = exact_batch(LOGITS, game.preference, game.similarity)
    value = LOSSES[name](games.tabular_policy(logits, batch), batch, beta=0.7)[0].result()

    r = np.asarray(jax.nn.log_softmax(logits), np.float64) - LOGITS
    policy, p = np.exp(LOGITS), game.preference
    rate, total = p @ policy, 0.0
    for w in range(4):
        for l in range(4):
            d = r[w] - r[l]
            term = {
                "sppo": (
                    ((r[w] - (rate[w] - 0.5) / 0.7) ** 2 + (r[l] - (rate[l] - 0.5) / 0.7) ** 2) / 2
                ),
                "sppo_single": (
                    ((r[w] - (p[w, l] - 0.5) / 0.7) ** 2 + (r[l] + (p[w, l] - 0.5) / 0.7) ** 2) / 2
                ),
                "dpo": np.log1p(np.exp(-0.7 * d)),
                "ipo": (d - 1 / 1.4) ** 2,
            }[name]
            total += 2 * policy[w] * policy[l] * p[w, l] * term
    assert float(value) == pytest.approx(total, rel=1e-5)


def test_the_gates_of_the_exact_batch_are_the_papers_two():
    game = games.random_skew(4, 1)
    policy, p, s = np.exp(LOGITS), game.preference, game.similarity
    pairwise = exact_batch(LOGITS, p, s, gate_level="pairwise")
    pair = exact_batch(LOGITS, p, s, gate_level="pair")
    raw = exact_batch(LOGITS, p, s)
    np.testing.assert_allclose(
        pairwise.target[:, 0], np.repeat(game.calibrated @ policy, 4), rtol=1e-5
    )
    gated = 0.5 + (1 - s)[:, :, None] * (
        np.stack(np.broadcast_arrays((p @ policy)[:, None], p @ policy), -1) - 0.5
    )
    np.testing.assert_allclose(pair.target, gated.reshape(-1, 2), rtol=1e-5)
    np.testing.assert_array_equal(raw.target, raw.win_rate)
    for batch in (pairwise, pair):
        np.testing.assert_array_equal(batch.win_rate, raw.win_rate)
    mean = {
        name: np.sum(b.target * b.weight[:, None])
        for name, b in {"pairwise": pairwise, "pair": pair}.items()
    }
    assert mean["pairwise"] == pytest.approx(0.5, abs=1e-6)
    assert abs(mean["pair"] - 0.5) > 1e-3  # Algorithm 1's gate is a move in no constant-sum game


def test_a_gate_that_has_no_exact_form_is_refused():
    with pytest.raises(ConfigError, match="group_mean"):
        exact_batch(LOGITS, np.full((4, 4), 0.5), np.eye(4), gate_level="group_mean")


@pytest.mark.parametrize("log_z_coef", [0.5, 0.8])
def test_one_natural_gradient_step_on_sppo_is_the_exact_update(log_z_coef):
    game = games.random_skew(4, 0)
    loss = functools.partial(LOSSES["sppo"], beta=0.5, log_z_coef=log_z_coef)
    after = jax.nn.log_softmax(update_with(loss, game)(LOGITS))
    exact = games.exponential_weights(LOGITS, jnp.asarray(game.preference, jnp.float32), eta=2.0)
    np.testing.assert_allclose(after, exact, rtol=1e-5, atol=1e-5)


def test_one_step_on_s_sppo_is_the_exact_update_of_the_calibrated_game():
    game = games.random_skew(4, 0)
    after = jax.nn.log_softmax(update_with(S_SPPO, game, gate_level="pairwise")(LOGITS))
    exact = games.exponential_weights(LOGITS, jnp.asarray(game.calibrated, jnp.float32), eta=0.1)
    np.testing.assert_allclose(after, exact, rtol=1e-5, atol=1e-6)


def test_the_minimum_of_ipo_against_pi_t_is_the_exact_update():
    game = games.random_skew(4, 0)
    loss = functools.partial(LOSSES["ipo"], beta=0.5)
    exact = games.exponential_weights(LOGITS, jnp.asarray(game.preference, jnp.float32), eta=2.0)
    for steps in (1, 20):
        after = jax.nn.log_softmax(update_with(loss, game, 0.25, steps)(LOGITS))
        np.testing.assert_allclose(after, exact, rtol=1e-5, atol=1e-5)


def test_the_first_step_of_dpo_is_the_exact_update_too():
    game = games.random_skew(4, 0)
    loss = functools.partial(LOSSES["dpo"], beta=2.0)
    after = jax.nn.log_softmax(update_with(loss, game, 2 / 2.0**2)(LOGITS))
    exact = games.exponential_weights(LOGITS, jnp.asarray(game.preference, jnp.float32), eta=2.0)
    np.testing.assert_allclose(after, exact, rtol=1e-5, atol=1e-5)


def test_the_minimum_of_sppo_is_the_exact_update_but_for_third_order_in_eta():
    game = games.random_skew(4, 0)

    def error(eta):
        after = jax.nn.log_softmax(
            update_with(functools.partial(LOSSES["sppo"], beta=1 / eta), game, steps=200)(LOGITS)
        )
        exact = games.exponential_weights(
            LOGITS, jnp.asarray(game.preference, jnp.float32), eta=eta
        )
        return float(jnp.abs(after - exact).max())

    small, large = error(0.5), error(1.0)
    assert small > 1e-4 and 6 < large / small < 10


def test_an_action_that_is_rare_or_was_not_drawn_does_not_jump():
    policy = np.array([0.9, 0.09, 0.0099, 0.0001], np.float32)
    logp = np.log(policy)
    rows = {
        "win_rate": np.array([[0.9, 0.1]] * 2, np.float32),
        "target": np.array([[0.9, 0.1]] * 2, np.float32),
        "p_win": np.full(2, 0.9, np.float32),
        "similarity": np.zeros(2, np.float32),
        "weight": np.ones(2, np.float32),
    }
    batch = pair_batch(
        jnp.array([[3, 0], [1, 0]]), logp=jnp.asarray(logp), reference=jnp.asarray(logp), **rows
    )
    moved = np.asarray(improve(SPPO, jnp.asarray(logp), batch, step_size=0.5)) - logp
    target = 0.04  # (P - 1/2) / beta
    assert moved[3] == pytest.approx(target, rel=0.02)
    assert moved[1] > 0.5 * target and moved[0] < -0.4 * target
    assert abs(moved[2]) < 1e-6


@pytest.mark.parametrize("name", ["nash_md", "xpo"])
def test_a_loss_on_the_opponent_batch_is_its_expectation_over_the_policy_and_its_opponent(name):
    p, reference = games.random_skew(4, 0).preference, np.array([0.4, 0.3, 0.2, 0.1])
    logits = jnp.asarray([0.3, -0.2, 0.1, 0.9], jnp.float32)
    batch = opponent_batch(LOGITS, p, reference=np.log(reference), mixture_coef=0.25)
    value = LOSSES[name](games.tabular_policy(logits, batch), batch, beta=0.7)[0].result()
    policy, logp = np.exp(LOGITS), np.asarray(jax.nn.log_softmax(logits), np.float64)
    opponent = policy**0.75 * reference**0.25
    r, total = logp - np.log(reference), 0.0
    for a in range(4):
        for b in range(4):
            w, l = (a, b) if p[a, b] > 0.5 else (b, a)
            term = {
                "nash_md": 0.7 * r[a] * logp[a] - (p[a, b] - 0.5) * logp[a],
                "xpo": np.log1p(np.exp(-0.7 * (r[w] - r[l]))) + 1e-5 * logp[b],
            }[name]
            total += policy[a] * opponent[b] / opponent.sum() * term
    assert float(value) == pytest.approx(total, rel=1e-5)


def nash_md(game, *, beta, mixture_coef, reference, step_size):
    loss = functools.partial(LOSSES["nash_md"], beta=beta, mixture_coef=mixture_coef)

    def update(logits):
        batch = opponent_batch(
            logits, game.preference, reference=np.log(reference), mixture_coef=mixture_coef
        )
        return improve(loss, logits, batch, step_size=step_size, learners=1)

    return update


def test_one_natural_gradient_step_on_nash_md_is_its_mirror_descent_step():
    game, reference, eta, beta = games.random_skew(4, 0), np.array([0.4, 0.3, 0.2, 0.1]), 0.8, 0.25
    update = nash_md(game, beta=beta, mixture_coef=eta * beta, reference=reference, step_size=eta)
    mixed = np.exp(LOGITS) ** (1 - eta * beta) * reference ** (eta * beta)
    expected = mixed * np.exp(eta * game.preference @ (mixed / mixed.sum()))
    np.testing.assert_allclose(jax.nn.softmax(update(LOGITS)), expected / expected.sum(), rtol=1e-5)


# ---- self-play ----


def test_play_is_the_loop_it_says():
    game = games.random_skew(4, 0)
    update = update_with(SPPO, game)
    logits, by_hand = jnp.asarray(LOGITS), []
    for _ in range(3):
        by_hand.append(jax.nn.softmax(logits))
        logits = update(logits)
    np.testing.assert_allclose(play(update, LOGITS, 3), by_hand, rtol=1e-5)
    np.testing.assert_allclose(
        games.averaged(np.array([[1.0, 0], [0, 1], [0, 1]])), [[1, 0], [0.5, 0.5], [1 / 3, 2 / 3]]
    )


def test_on_a_cycle_the_average_converges_and_the_last_iterate_does_not():
    """Identity 11, first half: by the exact update, and by SPPO."""
    game = games.rock_paper_scissors()
    exact = functools.partial(
        games.exponential_weights, preference=jnp.asarray(game.preference, jnp.float32), eta=0.02
    )
    for update, iterations in (
        (exact, 20_000),
        (update_with(functools.partial(LOSSES["sppo"], beta=10.0), game), 4000),
    ):
        played = play(update, np.log([0.5, 0.25, 0.25]), iterations)
        np.testing.assert_allclose(games.averaged(played)[-1], 1 / 3, atol=0.01)
        assert duality_gap(played[iterations // 2 :], game.preference).min() > 0.15


def test_on_a_cycle_the_last_iterate_of_nash_md_converges_to_the_regularised_equilibrium():
    """Where SPPO's goes on cycling. With mixture_coef 1/2 Nash-MD's converges too, but
    elsewhere."""
    game, reference, beta, eta = (
        games.rock_paper_scissors(*BIASED),
        np.array([0.5, 0.25, 0.25]),
        0.1,
        0.1,
    )
    solved = games.regularised_equilibrium(game.preference, reference, beta)
    off = {}
    for coef in (0.0, eta * beta, 0.5):
        update = nash_md(game, beta=beta, mixture_coef=coef, reference=reference, step_size=eta)
        played = play(update, np.log(reference), 3000)
        assert np.abs(played[-500:] - played[-1]).max() < 1e-4, coef
        off[coef] = np.abs(played[-1] - solved).max()
    assert off[0.0] < 1e-4 and off[eta * beta] < 5e-3 and off[0.5] > 0.03
    assert np.abs(solved - reference).max() > 0.1
    sppo = play(
        update_with(functools.partial(LOSSES["sppo"], beta=1 / eta), game), np.log(reference), 3000
    )
    assert np.ptp(sppo[-500:], axis=0).max() > 0.1


def test_a_condorcet_winner_is_where_the_last_iterate_goes():
    """Identity 11, second half."""
    game = games.condorcet_winner(5, 0)
    played = play(update_with(functools.partial(LOSSES["sppo"], beta=2.0), game), np.zeros(5), 500)
    assert played[-1, 0] > 0.999 and played[0, 0] == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["sppo", "s_sppo"])
def test_the_gap_of_the_average_falls_as_one_over_root_t_and_stays_under_its_bound(name):
    made = [games.random_skew(5, seed, scale=2.0) for seed in range(4)]
    gate = "none" if name == "sppo" else "pairwise"
    judges = [g.preference if name == "sppo" else g.calibrated for g in made]
    lengths, gap = np.array([256, 4096]), []
    for length in lengths:
        keywords = {} if name == "sppo" else {"repulsion_weight": 0.0}
        loss = functools.partial(
            LOSSES[name], beta=float(np.sqrt(length / (8 * np.log(5)))), **keywords
        )

        def one(p, s, loss=loss, length=length):
            return games.play(
                update_with(loss, SimpleNamespace(preference=p, similarity=s), gate_level=gate),
                jnp.zeros(5),
                int(length),
            )

        matrices = (
            np.stack([getattr(g, f) for g in made]).astype(np.float32)
            for f in ("preference", "similarity")
        )
        played = np.asarray(jax.jit(jax.vmap(one))(*matrices))
        gap.append(
            [duality_gap(games.averaged(x)[-1], p) for x, p in zip(played, judges, strict=True)]
        )
    gap = np.array(gap)
    assert (gap <= np.sqrt(2 * np.log(5) / lengths)[:, None]).all()
    slope = np.log(gap[1] / gap[0]).mean() / np.log(lengths[1] / lengths[0])
    assert -0.65 < slope < -0.35


def test_self_play_with_repulsion_reaches_the_repelled_equilibrium_and_keeps_paraphrases():
    game = games.paraphrased(
        games.rock_paper_scissors(0.2, 0.2, 0.2), 2, similarity=0.9, margin=0.4
    )
    solved = games.repelled_equilibrium(game.calibrated, game.similarity, 1.0)
    batch = {"gate_level": "pairwise", "repulsion": 1.0}
    played = play(
        update_with(functools.partial(S_SPPO, beta=5.0), game, **batch), np.zeros(6), 2000
    )
    np.testing.assert_allclose(games.averaged(played)[-1], solved, atol=5e-3)
    plain = play(update_with(functools.partial(S_SPPO, beta=5.0), game), np.zeros(6), 2000)
    assert plain[-1, [1, 3, 5]].sum() < 1e-3 < 0.3 < solved[[1, 3, 5]].sum()


def test_dpo_on_fixed_pairs_takes_the_borda_winner_and_self_play_the_condorcet_winner():
    game = games.narrow_winner(4)
    loss = functools.partial(LOSSES["dpo"], beta=0.1)
    offline = jax.nn.softmax(jax.jit(update_with(loss, game, 2 / 0.1**2, 1000))(jnp.zeros(4)))
    assert offline[1] > 0.99 and duality_gap(np.asarray(offline), game.preference) == pytest.approx(
        0.1, abs=1e-3
    )
    for loss, step_size in (
        (functools.partial(LOSSES["dpo"], beta=8.0), 2 / 8.0**2),
        (functools.partial(SPPO, beta=2.0), 0.5),
    ):
        assert play(update_with(loss, game, step_size, 3), np.zeros(4), 2000)[-1, 0] > 0.99


def test_dpo_on_fixed_pairs_is_the_bradley_terry_fit_where_there_is_one():
    scores = np.array([0.0, 1.0, -0.5, 0.3])
    game = games.bradley_terry(scores)
    loss = functools.partial(LOSSES["dpo"], beta=1.0)
    trained = jax.nn.log_softmax(jax.jit(update_with(loss, game, 2.0, 200))(LOGITS))
    np.testing.assert_allclose(np.diff(trained - LOGITS), np.diff(scores), atol=1e-3)


def test_sampled_self_play_of_the_experiment_finds_a_condorcet_winner(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "experiments/nash")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import run

    for name in ("run", "figures"):  # names too plain to stay imported
        sys.modules.pop(name)
    game = games.condorcet_winner(4, 0, scale=2.0)
    for gate, best_and_worst in (("pair", True), ("none", False)):
        played = run.sampled_play(
            game, 1.0, iterations=150, gate=gate, best_and_worst=best_and_worst, seed=0
        )
        assert played[0, 0] == 0.25 and played[-1, 0] > 0.9
