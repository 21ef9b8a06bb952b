"""Tabular general-preference games: where self-play can be held against theory.

A game is a matrix P[a,b] = P(a > b) over A actions with P + P^T = 1. Nothing asks it to be
transitive. An action is a response of one token and the logits of a softmax over the A actions are
all the parameters, so the losses of `ssppo_jax.losses` run here unchanged (`pair_batch`,
`improve`), on exact expectations (`exact_batch`) or on samples. What they reach is compared with
the exact equilibrium (`equilibrium`) by the duality gap (`duality_gap`).

The game is symmetric and constant-sum, so its value is 1/2 and both players have the same
equilibria. Games and their solutions are NumPy float64; what is played is JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ssppo_jax.errors import ConfigError, UserError
from ssppo_jax.losses.gates import calibrate, linear
from ssppo_jax.oracles import links
from ssppo_jax.types import Array, Batch, Mean, Metrics, Policy

GATE_LEVELS = ("none", "pairwise", "pair")
ROUNDING = 1e-6  # how far P + P^T may be from 1, and S from S^T, before it is an error
SOLVED = 1e-7  # largest complementarity gap of a repelled equilibrium that counts as solved
RAREST = (
    1e-30  # probabilities below it no longer enlarge a natural-gradient step: float32 ends at 1e-38
)

Loss = Callable[
    [Policy, Batch], tuple[Mean, Metrics]
]  # an entry of `LOSSES` with its keywords bound
Update = Callable[[Array], Array]  # logits of pi_t [A] -> logits of pi_{t+1} [A]


@dataclasses.dataclass(frozen=True)
class Game:
    """Who beats whom, and who resembles whom. Raises UserError for matrices that break their
    contract."""

    preference: np.ndarray  # [A,A] float64, P(a > b) in [0,1], P + P^T = 1
    similarity: np.ndarray | None = (
        None  # [A,A] float64 in [0,1], symmetric; the identity when not given
    )

    def __post_init__(self):
        p = np.asarray(self.preference, np.float64)
        s = np.eye(len(p)) if self.similarity is None else np.asarray(self.similarity, np.float64)
        if p.ndim != 2 or p.shape[0] != p.shape[1] or len(p) < 2:
            raise UserError(
                f"a game's preference is [A,A] with A >= 2 actions, got shape {p.shape}"
            )
        if not (_within_unit(p) and np.abs(p + p.T - 1.0).max() <= ROUNDING):
            raise UserError(
                "a game's preference is P(a > b) in [0,1] with P + P^T = 1: give P = 1/2 + M, M ="
                " -M^T"
            )
        if not (s.shape == p.shape and _within_unit(s) and np.abs(s - s.T).max() <= ROUNDING):
            raise UserError(
                f"a game's similarity is symmetric, in [0,1] and of shape {p.shape}, got shape"
                f" {s.shape}"
            )
        object.__setattr__(self, "preference", p)
        object.__setattr__(self, "similarity", s)

    @property
    def calibrated(self) -> np.ndarray:
        """P^c = 1/2 + (1 - S)(P - 1/2) -> [A,A]: the game S-SPPO plays (arXiv 2606.01561, appendix
        A.1).

        S is symmetric, so P^c + P^c^T = 1 (Lemma 3.1): it is a game like any other.
        """
        return calibrate(self.preference, linear(self.similarity))


def _within_unit(x: np.ndarray) -> bool:
    return bool(np.all((x >= 0) & (x <= 1)))  # False for NaN


def rock_paper_scissors(
    paper_over_rock: float = 0.5, scissors_over_paper: float = 0.5, rock_over_scissors: float = 0.5
) -> Game:
    """The cycle, each margin P - 1/2 in (0, 1/2]. Nobody transitive can model it.

    Its only equilibrium gives each action the share of the margin between the other two:
    (rock, paper, scissors) ~ (scissors_over_paper, rock_over_scissors, paper_over_rock).
    """
    margin = np.zeros((3, 3))
    margin[1, 0], margin[2, 1], margin[0, 2] = (
        paper_over_rock,
        scissors_over_paper,
        rock_over_scissors,
    )
    return Game(0.5 + margin - margin.T)


def random_skew(actions: int, seed: int, scale: float = 1.0) -> Game:
    """P = sigmoid(scale * (N - N^T) / sqrt 2), N standard normal: no order at all. S is
    `random_similarity`."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(actions, actions))
    return Game(
        _sigmoid(scale * (normal - normal.T) / np.sqrt(2.0)), random_similarity(actions, seed)
    )


def condorcet_winner(actions: int, seed: int, scale: float = 1.0) -> Game:
    """A random game in which action 0 beats every other: playing it is then the only
    equilibrium."""
    game = random_skew(actions, seed, scale)
    margin = game.preference - 0.5
    margin[0, 1:] = np.maximum(np.abs(margin[0, 1:]), 0.05)
    margin[1:, 0] = -margin[0, 1:]
    return Game(0.5 + margin, game.similarity)


def narrow_winner(actions: int = 4, margin: float = 0.05, landslide: float = 0.4) -> Game:
    """Action 0 beats all by `margin`; action 1 loses to it and beats the rest by `landslide`.

    Action 0 is the equilibrium (the Condorcet winner) and action 1 has the higher mean win rate
    (the Borda winner), so a method that scores actions by one number fitted to all comparisons
    picks the wrong one."""
    m = np.zeros((actions, actions))
    m[0, 1:], m[1, 2:] = margin, landslide
    return Game(0.5 + m - m.T)


def bradley_terry(scores: np.ndarray) -> Game:  # scores [A]
    """P(a > b) = sigmoid(s_a - s_b): transitive, the highest score is the equilibrium."""
    p = links.bradley_terry(np.asarray(scores)[None], temperature=1.0)[0].astype(np.float64)
    return Game(0.5 * (p + 1.0 - p.T))


def paraphrased(game: Game, copies: int, *, similarity: float, margin: float) -> Game:
    """Every action in `copies` wordings: alike by `similarity`, and wording i beats wording j > i
    by `margin`.

    Wordings do the same against other actions, so their comparisons with each other mean nothing:
    an overconfident oracle. Action a's wordings are a*copies to a*copies + copies - 1, the favoured
    one first."""
    wording = np.triu(np.full((copies, copies), float(margin)), 1)
    same = np.eye(len(game.preference))
    p = np.kron(game.preference - 0.5, np.ones((copies, copies))) + np.kron(
        same, wording - wording.T
    )
    alike = np.where(np.eye(copies) > 0, 1.0, similarity)
    return Game(
        0.5 + p, np.where(np.kron(same, np.ones((copies, copies))) > 0, np.kron(same, alike), 0.0)
    )


def random_similarity(actions: int, seed: int, width: int = 3) -> np.ndarray:  # [A,A]
    """Cosines of random vectors without negative entries: in [0,1], S_aa = 1, positive
    semi-definite."""
    h = np.abs(np.random.default_rng((seed, 1)).normal(size=(actions, width)))
    h /= np.linalg.norm(h, axis=1, keepdims=True)
    s = np.clip(h @ h.T, 0.0, 1.0)
    np.fill_diagonal(s, 1.0)
    return s


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


# ---- theory ----


def win_rates(policy: Array, preference: Array) -> Array:  # [...,A]  # [A,A]
    """P(a > policy) of every action -> [...,A]."""
    return policy @ preference.T


def duality_gap(policy: Array, preference: Array) -> Array:  # [...,A]  # [A,A]
    """max_pi P(pi > policy) - min_pi P(policy > pi) -> [...], in [0,1] and 0 at an equilibrium
    only.

    SPPO (arXiv 2405.00675, section 4). The two terms are v and 1 - v with v the best answer's win
    rate, so the gap is 2 v - 1: twice the exploitability v - 1/2, the eps of an eps-Nash
    equilibrium."""
    return 2.0 * win_rates(policy, preference).max(-1) - 1.0


def equilibrium(preference: np.ndarray) -> np.ndarray:  # [A,A]  # [A]
    """An exact equilibrium by linear programming: maximise v over policies with P(policy > b) >= v
    for all b.

    Where there are several, this is one of them (a vertex of their set). Raises UserError if the
    solver fails."""
    from scipy.optimize import (
        linprog,  # slow to import, and every oracle module is imported at start
    )

    actions = len(preference)
    found = linprog(
        c=np.append(np.zeros(actions), -1.0),
        A_ub=np.column_stack([-preference.T, np.ones(actions)]),
        b_ub=np.zeros(actions),
        A_eq=np.append(np.ones(actions), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * actions + [(None, None)],
    )
    if not found.success:
        raise UserError(f"no equilibrium found: {found.message}")
    policy = np.clip(found.x[:-1], 0.0, None)
    return policy / policy.sum()


def expected_similarity(
    policy: np.ndarray,
    similarity: np.ndarray,  # [...,A]  # [A,A]
) -> np.ndarray:
    """R(pi) = sum_ab pi(a) pi(b) S_ab -> [...], in [0,1]: how alike two samples of a policy are on
    average."""
    return np.sum((policy @ similarity) * policy, axis=-1)


def repelled_equilibrium(
    preference: np.ndarray,  # [A,A]
    similarity: np.ndarray,  # [A,A], positive semi-definite
    weight: float,
) -> np.ndarray:  # [A]
    """The equilibrium of U(pi, pi') = P(pi > pi') - weight R(pi) + weight R(pi'), R =
    `expected_similarity`.

    S-SPPO (arXiv 2606.01561) Proposition 3.3 for one bounded R. With pi' = pi its definition gives
    P(pi'' > pi) - 1/2 <= weight (R(pi'') - R(pi)): an eps-Nash equilibrium of P with eps <= 2
    weight M where |R| <= M, and eps <= weight here, R being in [0,1]. (The paper's R is the cosine
    of hidden states, which a table does not have: a reconstruction.)

    R is convex, hence pi is the equilibrium iff M pi >= pi.M pi with M = 2 weight S - P: a convex
    program whose optimal value is 0. Raises UserError if S is not positive semi-definite or that 0
    is not reached."""
    from scipy.optimize import minimize

    if np.linalg.eigvalsh(similarity)[0] < -ROUNDING:
        raise UserError(
            "a repelled equilibrium needs a positive semi-definite similarity: give a Gram matrix"
        )
    actions, scale = len(preference), 1.0 + weight
    m = (2.0 * weight * similarity - preference) / scale

    def gap_and_gradient(x):  # x = policy and the least payoff v
        return x[:-1] @ m @ x[:-1] - x[-1], np.append((m + m.T) @ x[:-1], -1.0)

    rows = np.column_stack([m, -np.ones(actions)])
    start = np.full(actions, 1.0 / actions)
    found = minimize(
        gap_and_gradient,
        np.append(start, (m @ start).min()),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * actions + [(None, None)],
        constraints=[
            {"type": "ineq", "fun": lambda x: rows @ x, "jac": lambda x: rows},
            {
                "type": "eq",
                "fun": lambda x: x[:-1].sum() - 1.0,
                "jac": lambda x: np.append(np.ones(actions), 0.0),
            },
        ],
        options={"maxiter": 1000, "ftol": 1e-15},
    )
    policy = np.clip(found.x[:-1], 0.0, None) / np.clip(found.x[:-1], 0.0, None).sum()
    gap = scale * (policy @ m @ policy - (m @ policy).min())
    if not gap <= SOLVED * scale:
        raise UserError(
            f"no repelled equilibrium found: complementarity gap {gap:.1e} ({found.message})"
        )
    return policy


def regularised_equilibrium(
    preference: np.ndarray,
    reference: np.ndarray,
    weight: float,  # [A,A]  # [A], positive
) -> np.ndarray:  # [A]
    """The equilibrium of U(pi, pi') = P(pi > pi') - weight KL(pi || ref) + weight KL(pi' || ref).

    What Nash-MD (arXiv 2312.00886) converges to, weight being its tau. It is unique, and the
    solution of pi(a) ~ ref(a) exp(P(a > pi)/weight). Raises UserError if the solver does not find
    it, as for a tiny weight."""
    from scipy.optimize import root

    anchor = np.log(np.asarray(reference, np.float64))

    def policy(logits):
        e = np.exp(logits - logits.max())
        return e / e.sum()

    def error(logits):
        return logits - anchor - preference @ policy(logits) / weight

    found = root(error, anchor, tol=1e-13).x
    if not np.abs(error(found)).max() <= SOLVED:
        raise UserError(f"no regularised equilibrium found at weight {weight:g}: give a larger one")
    return policy(found)


def log_z(policy: Array, win_rate: Array, eta: float) -> Array:  # [A]  # [A]
    """log Z = log sum_a pi(a) exp(eta P(a > pi)) -> []: the normaliser SPPO's loss puts a constant
    for."""
    return jax.scipy.special.logsumexp(eta * jnp.asarray(win_rate), b=jnp.asarray(policy))


def exponential_weights(
    logits: Array,
    preference: Array,
    *,
    eta: float,  # [A] of pi_t  # [A,A]
) -> Array:  # [A]
    """log pi_{t+1} = log pi_t + eta P(. > pi_t) - log Z: the exact update SPPO approximates
    (2405.00675 eq. 4.2)."""
    return jax.nn.log_softmax(logits + eta * win_rates(jax.nn.softmax(logits), preference))


# ---- self-play with the project's losses ----


def pair_batch(
    actions: Array,  # [R,2] int32, winner and loser of each row
    *,
    logp: Array,  # [A] float32, log pi_t
    reference: Array,  # [A] float32, log-probs of the loss's reference
    win_rate: Array,  # [R,2]
    target: Array,  # [R,2]
    p_win: Array,  # [R]
    similarity: Array,  # [R]
    weight: Array,  # [R]
) -> Batch:
    """R pairs of one-token responses to the one prompt of the game. The advantage is P(y > pi_t) -
    1/2."""
    completion = actions[:, :, None]
    return Batch(
        prompt=jnp.zeros((len(actions), 1), jnp.int32),
        prompt_length=jnp.ones(len(actions), jnp.int32),
        completion=completion,
        mask=jnp.ones(completion.shape, jnp.float32),
        old_logp=logp[completion],
        ref_logp=reference[completion],
        init_logp=reference[completion],
        win_rate=win_rate,
        target=target,
        p_win=p_win,
        similarity=similarity,
        advantage=win_rate - 0.5,
        weight=weight,
    )


def exact_batch(
    logits: Array,  # [A] of pi_t
    preference: Array,  # [A,A]
    similarity: Array,  # [A,A]
    *,
    reference: Array | None = None,  # [A] logits of the loss's reference; None is pi_t
    gate_level: str = "none",
    repulsion: float = 0.0,
) -> Batch:
    """Every ordered pair (a, b), weighted by the chance pi_t(a) pi_t(b) P(a > b) that both are
    drawn and a wins.

    The mean of a pair loss over these A^2 rows is its expectation over pairs drawn from pi_t and
    labelled by P: no sampling noise, and no selection of the best and worst of K. Win rates are P(.
    > pi_t) exactly.

    With gate_level `pairwise` the target is P^c(. > pi_t), a move in the calibrated game. With
    `pair` (S-SPPO's Algorithm 1) both win rates of a row are gated by S_ab, so an action's targets
    differ from row to row; their mean is 1/2 + (1 - sum_b pi_t(b) S_ab)(P(a > pi_t) - 1/2), which
    is a move in no constant-sum game. `repulsion` moves the target along the gradient of -repulsion
    * R (see `repelled_equilibrium`); its mean stays."""
    if gate_level not in GATE_LEVELS:
        raise ConfigError(
            f"gate_level={gate_level!r} is not exact here: use one of {', '.join(GATE_LEVELS)}"
        )
    logp = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    p, s, policy = (
        jnp.asarray(preference, jnp.float32),
        jnp.asarray(similarity, jnp.float32),
        jnp.exp(logp),
    )
    actions = jnp.stack(jnp.meshgrid(*(jnp.arange(len(p)),) * 2, indexing="ij"), axis=-1).reshape(
        -1, 2
    )
    alike = s.reshape(-1)
    rate = win_rates(policy, p)
    target = win_rates(policy, calibrate(p, linear(s))) if gate_level == "pairwise" else rate
    crowding = s @ policy
    target = (target - 2.0 * repulsion * (crowding - policy @ crowding))[actions]
    if gate_level == "pair":
        target = calibrate(target, jnp.stack([linear(alike)] * 2, axis=-1))
    return pair_batch(
        actions,
        logp=logp,
        reference=(
            logp if reference is None else jax.nn.log_softmax(jnp.asarray(reference, jnp.float32))
        ),
        win_rate=rate[actions],
        target=target,
        p_win=p.reshape(-1),
        similarity=alike,
        weight=(policy[:, None] * policy[None, :] * p).reshape(-1),
    )


def opponent_batch(
    logits: Array,  # [A] of pi_t
    preference: Array,  # [A,A]
    *,
    reference: Array,  # [A] logits
    mixture_coef: float,
) -> Batch:
    """Every pair (a, b), weighted by pi_t(a) times the opponent's chance of b: the expectation of
    an opponent loss.

    The opponent is pi_t^(1 - mixture_coef) * reference^mixture_coef, normalised
    (`losses.opponent`)."""
    logp, ref = (jax.nn.log_softmax(jnp.asarray(x, jnp.float32)) for x in (logits, reference))
    p, policy = jnp.asarray(preference, jnp.float32), jnp.exp(logp)
    opponent = jax.nn.softmax((1.0 - mixture_coef) * logp + mixture_coef * ref)
    actions = jnp.stack(jnp.meshgrid(*(jnp.arange(len(p)),) * 2, indexing="ij"), axis=-1).reshape(
        -1, 2
    )
    rate = win_rates(policy, p)[actions]
    return pair_batch(
        actions,
        logp=logp,
        reference=ref,
        win_rate=rate,
        target=rate,
        p_win=p.reshape(-1),
        similarity=jnp.zeros(len(actions)),
        weight=(policy[:, None] * opponent[None, :]).reshape(-1),
    )


def tabular_policy(logits: Array, batch: Batch) -> Policy:  # [A]
    """What a loss sees of a softmax policy. A table has no hidden states: they are 0, and so is a
    cosine of them."""
    logp = jax.nn.log_softmax(logits)[batch.completion]
    return Policy(logp=logp, hidden=jnp.zeros_like(logp))


def improve(
    loss: Loss,
    logits: Array,  # [A] of pi_t
    batch: Batch,
    *,
    step_size: float,
    steps: int = 1,
    learners: int = 2,
) -> Array:  # [A]
    """`steps` natural-gradient steps down the loss, from pi_t -> logits of pi_{t+1}.

    The gradient by each logit is divided by pi_t(a) (the Fisher matrix of a softmax, up to a shift
    of all logits), or by the action's share of the batch where that is larger, which keeps a rare
    action that was drawn from jumping. Rare and frequent actions then learn alike. The share is
    counted over the first `learners` responses of a row: 1 for a loss that moves the policy's
    sample and not its opponent's.

    On an `exact_batch` one step is the whole of Newton's for

        sppo, s_sppo  step_size 1/2: exactly `exponential_weights` at eta = 1/beta, whatever
                      log_z_coef is (at log_z_coef 1/2 the loss's minimum differs from it by
                      O(eta^3): a softmax must normalise)
        ipo           step_size 1/4: the same (without length normalisation, which one token does
        not need) dpo           step_size 2/beta^2: `exponential_weights` at eta = 4/beta as the
        first of many steps

    On an `opponent_batch` one step of nash_md, learners 1 and step_size eta, leads to what is
    proportional to pi_t^(1 - eta beta) * reference^(eta beta) * exp(eta P(. > opponent)). With
    mixture_coef = eta beta that is the mirror descent of Nash-MD (arXiv 2312.00886)."""
    policy = jax.nn.softmax(logits)
    counted = batch.weight[:, None] / learners * jnp.ones((1, learners))
    share = jnp.zeros_like(policy).at[batch.completion[:, :learners, 0]].add(counted)
    metric = jnp.maximum(jnp.maximum(share / jnp.sum(batch.weight), policy), RAREST)
    gradient = jax.grad(lambda x: loss(tabular_policy(x, batch), batch)[0].result())
    return jax.lax.fori_loop(0, steps, lambda _, x: x - step_size * gradient(x) / metric, logits)


def play(update: Update, logits: Array, iterations: int) -> Array:  # [A] of pi_0  # [iterations,A]
    """Self-play: the policies pi_0 ... pi_{T-1}. Pure; put it under `jax.jit` and `jax.vmap` as it
    is."""

    def step(logits, _):
        logp = jax.nn.log_softmax(logits)
        return update(logp), jnp.exp(logp)

    return jax.lax.scan(step, jnp.asarray(logits, jnp.float32), None, length=iterations)[1]


def averaged(policies: Array) -> np.ndarray:  # [T,A]  # [T,A]
    """The running mean of the policies played: what the convergence theorems speak of. Summed in
    float64."""
    policies = np.asarray(policies, np.float64)
    return np.cumsum(policies, axis=0) / np.arange(1, len(policies) + 1)[:, None]
