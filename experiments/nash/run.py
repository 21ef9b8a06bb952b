"""Does self-play with the project's losses reach the equilibrium of an intransitive game? See
README.md.

    python experiments/nash/run.py --output=DIR

writes DIR/tables.md and three plots. Seeds are fixed: the same machine gives the same numbers.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import figures
import game as games
import jax
import jax.numpy as jnp
import numpy as np

from ssppo_jax.losses import LOSSES
from ssppo_jax.rollout import pairs

ACTIONS = 10
SEEDS = range(8)  # random games
LENGTHS = (64, 256, 1024, 4096, 16384)  # iterations T, each played with its own step size
ETA, ITERATIONS = 0.1, 4000  # of the comparison of methods
GROUPS, K = 64, 5  # of sampled self-play: prompts per iteration, samples per prompt
HARD_SEED = 3  # of SEEDS, the game in which the pair gate does worst on exact expectations
BIASED = (0.1, 0.2, 0.4)  # margins of rock-paper-scissors with equilibrium (2/7, 4/7, 1/7)


def bound_loss(name: str, beta: float) -> tuple[games.Loss, float]:
    """The loss, and the step size that is Newton's at pi_t (see `games.improve`)."""
    keywords = (
        {"repulsion_weight": 0.0} if name == "s_sppo" else {}
    )  # a table has no hidden states to repel
    step_size = {"sppo": 0.5, "s_sppo": 0.5, "ipo": 0.25, "dpo": 2.0 / beta**2}[name]
    return functools.partial(LOSSES[name], beta=beta, **keywords), step_size


def exact_update(
    name: str, beta: float, preference, similarity, *, damping: float = 1.0, steps: int = 1, **batch
) -> games.Update:
    """One iteration of exact self-play with a loss of the project."""
    loss, step_size = bound_loss(name, beta)

    def update(logits):
        rows = games.exact_batch(logits, preference, similarity, **batch)
        return games.improve(loss, logits, rows, step_size=damping * step_size, steps=steps)

    return update


def play(update: games.Update, start: np.ndarray, iterations: int) -> np.ndarray:  # [iterations,A]
    return np.asarray(
        jax.jit(lambda logits: games.play(update, logits, iterations))(
            jnp.asarray(start, jnp.float32)
        )
    )


def gaps(policies: np.ndarray, preference: np.ndarray) -> tuple[float, float]:
    """Duality gap of the average of the policies played, and of the last one."""
    ends = np.stack([games.averaged(policies)[-1], policies[-1]])
    return tuple(float(x) for x in games.duality_gap(ends, preference))


def table(title: str, head: list[str], rows: list[list]) -> str:
    cells = [[x if isinstance(x, str) else f"{x:.4f}" for x in row] for row in rows]
    return f"### {title}\n\n" + "\n".join(
        "| " + " | ".join(r) + " |" for r in [head, ["---"] * len(head), *cells]
    )


# ---- the questions ----


def partition() -> str:
    """What SPPO's constant for log Z should be: with coin flips for outcomes, and with a strict
    order."""
    rng, rows = np.random.default_rng(0), []
    for eta in (1.0, 1000.0):
        limit = 1.0 + (np.log1p(-np.exp(-eta)) - np.log(eta)) / eta
        for k in (5, 50, 2000):
            flips = np.triu(rng.integers(0, 2, (k, k)), 1)
            coins, order = flips + np.tril(1 - flips.T, -1), np.tril(np.ones((k, k)), -1)
            rates = [(m + 0.5 * np.eye(k)).mean(axis=1).astype(np.float32) for m in (coins, order)]
            z = [
                float(games.log_z(np.full(k, 1.0 / k, np.float32), rate, eta)) / eta
                for rate in rates
            ]
            rows.append([f"{eta:g}", str(k), *z, limit])
    return table(
        "log Z / eta", ["eta", "K", "coin flips", "strict order", "limit of the order"], rows
    )


def cycle() -> tuple[str, dict]:
    """Rock-paper-scissors: the average converges, the last iterate does not. And it does to a
    Condorcet winner."""
    game, start, rows = games.rock_paper_scissors(), np.log([0.5, 0.25, 0.25]), []
    exact = functools.partial(
        games.exponential_weights, preference=jnp.asarray(game.preference, jnp.float32), eta=0.01
    )
    runs = {
        "exact update, eta 0.01, 200000 iterations": play(exact, start, 200_000),
        "SPPO, eta 0.1, 4000 iterations": play(
            exact_update("sppo", 10.0, game.preference, game.similarity), start, 4000
        ),
    }
    for name, policies in runs.items():
        mean = ", ".join(f"{x:.4f}" for x in games.averaged(policies)[-1])
        late = games.duality_gap(policies[len(policies) // 2 :], game.preference)
        rows.append(
            [name, mean, gaps(policies, game.preference)[0], float(late.min()), float(late.max())]
        )
    head = [
        "rock-paper-scissors",
        "average policy",
        "gap of the average",
        "least gap of a late iterate",
        "largest",
    ]
    return table("A cycle", head, rows), {"policies": runs["SPPO, eta 0.1, 4000 iterations"][:1000]}


def nash_md_update(beta: float, mixture_coef: float, preference, reference) -> games.Update:
    """One natural-gradient step of length ETA on Nash-MD: at mixture_coef = ETA * beta the paper's
    mirror descent."""
    loss = functools.partial(LOSSES["nash_md"], beta=beta, mixture_coef=mixture_coef)

    def update(logits):
        rows = games.opponent_batch(
            logits, preference, reference=reference, mixture_coef=mixture_coef
        )
        return games.improve(loss, logits, rows, step_size=ETA, learners=1)

    return update


def last_iterates() -> str:
    """Where the last policy of Nash-MD ends on a biased cycle, held against the regularised
    equilibrium."""
    p, reference, rows = (
        games.rock_paper_scissors(*BIASED).preference,
        np.array([0.5, 0.25, 0.25]),
        [],
    )
    start = np.log(reference)
    settings = {
        "SPPO, no reference": (exact_update("sppo", 1 / ETA, p, np.eye(3)), games.equilibrium(p))
    }
    for beta in (0.1, 0.03, 0.01):
        solved = games.regularised_equilibrium(p, reference, beta)
        for coef in (ETA * beta, 0.0, 0.5):
            title = f"Nash-MD, beta {beta:g}, mixture_coef {coef:g}"
            settings[title] = nash_md_update(beta, coef, p, start), solved
    for title, (update, end) in settings.items():
        policies = play(update, start, 4 * ITERATIONS)
        written = [", ".join(f"{x:.4f}" for x in policy) for policy in (end, policies[-1])]
        still = float(np.ptp(policies[-ITERATIONS:], axis=0).max())
        rows.append(
            [title, *written, float(np.abs(policies[-1] - end).max()), still, gaps(policies, p)[1]]
        )
    head = [
        "biased cycle",
        "equilibrium",
        "last policy",
        "apart by",
        f"range of the last {ITERATIONS}",
        "gap of the last",
    ]
    return table(f"The last of {4 * ITERATIONS} iterations at eta {ETA:g}", head, rows)


def one_game(preference, similarity, *, name: str, beta: float, gate: str, length: int):
    update = exact_update(name, beta, preference, similarity, gate_level=gate)
    return games.play(update, jnp.zeros(ACTIONS), length)


def rates() -> tuple[str, dict]:
    """Gap of the averaged policy after T iterations at eta = sqrt(8 log A / T), over random games:
    its slope in T."""
    made = [games.random_skew(ACTIONS, seed) for seed in SEEDS]
    similarity = np.stack([g.similarity for g in made]).astype(np.float32)
    settings = {  # loss, gate of its targets, game it is judged in
        "SPPO": ("sppo", "none", [g.preference for g in made]),
        "S-SPPO, each comparison gated": ("s_sppo", "pairwise", [g.calibrated for g in made]),
        "S-SPPO, pair gate, in the calibrated game": (
            "s_sppo",
            "pair",
            [g.calibrated for g in made],
        ),
        "S-SPPO, pair gate, in the raw game": ("s_sppo", "pair", [g.preference for g in made]),
    }
    preference, measured = np.stack([g.preference for g in made]).astype(np.float32), {}
    for length in LENGTHS:
        beta, done = float(np.sqrt(length / (8 * np.log(ACTIONS)))), {}
        for title, (name, gate, judges) in settings.items():
            if gate not in done:  # one run for both of its judges
                run = functools.partial(one_game, name=name, beta=beta, gate=gate, length=length)
                done[gate] = np.asarray(jax.jit(jax.vmap(run))(preference, similarity))
            measured.setdefault(title, []).append(
                [gaps(x, p) for x, p in zip(done[gate], judges, strict=True)]
            )
    measured = {
        title: np.array(values) for title, values in measured.items()
    }  # [lengths, games, average or last]
    rows = []
    for title, gap in measured.items():
        slopes = [slope(LENGTHS[i:], gap[i:, :, 0]) for i in (0, 2)]
        ends = [float(gap[i, :, 0].mean()) for i in (0, -1)]
        rows.append([title, *slopes, *ends, float(gap[-1, :, 1].mean())])
    head = [
        "method",
        "slope",
        f"slope, T >= {LENGTHS[2]}",
        f"gap, T={LENGTHS[0]}",
        f"gap, T={LENGTHS[-1]}",
    ]
    head.append(f"last iterate, T={LENGTHS[-1]}")
    bound = np.sqrt(2 * np.log(ACTIONS) / np.array(LENGTHS))
    return table("Gap of the averaged policy", head, rows), {
        "lengths": LENGTHS,
        "gap": measured,
        "bound": bound,
    }


def slope(lengths: tuple[int, ...], gap: np.ndarray) -> str:  # gap [lengths,games]
    """Least-squares slope of log gap in log T, mean ± standard error over games."""
    slopes = np.polyfit(np.log(lengths), np.log(gap), 1)[0]
    return f"{slopes.mean():.3f} ± {slopes.std(ddof=1) / np.sqrt(len(slopes)):.3f}"


def offline(name: str, beta: float, game: games.Game) -> np.ndarray:  # [1,A]
    """Trained to the end on pairs of the starting (uniform) policy: the pipeline of offline DPO."""
    loss, step_size = bound_loss(name, beta)

    @jax.jit
    def train(logits):
        batch = games.exact_batch(logits, game.preference, game.similarity)
        return games.improve(loss, logits, batch, step_size=step_size, steps=ITERATIONS)

    return np.asarray(jax.nn.softmax(train(jnp.zeros(len(game.preference)))))[None]


def methods() -> str:
    """Which gap each method ends at, on games with and without an order."""
    made = {
        "biased cycle": games.rock_paper_scissors(*BIASED),
        "random": games.random_skew(ACTIONS, 0),
        "Condorcet winner": games.condorcet_winner(ACTIONS, 0),
        "narrow winner": games.narrow_winner(),
        "Bradley-Terry": games.bradley_terry(np.linspace(-1.0, 1.0, ACTIONS)),
    }

    def self_play(game, name, beta, *, anchored=False, **keywords):
        start = np.zeros(len(game.preference), np.float32)
        keywords |= {"reference": start} if anchored else {}
        policies = play(
            exact_update(name, beta, game.preference, game.similarity, **keywords),
            start,
            ITERATIONS,
        )
        return "{:.4f} / {:.4f}".format(*gaps(policies, game.preference))

    def train_offline(game, name, beta):
        return f"{gaps(offline(name, beta, game), game.preference)[1]:.4f}"

    settings = {
        "SPPO": (self_play, "sppo", 1 / ETA, {}),
        "IPO, self-play": (self_play, "ipo", 1 / ETA, {}),
        "DPO, self-play, beta 40, reference pi_t": (self_play, "dpo", 4 / ETA, {"steps": 5}),
        "DPO, self-play, beta 1, reference pi_0": (
            self_play,
            "dpo",
            1.0,
            {"damping": ETA / 4, "anchored": True},
        ),
        "DPO, self-play, beta 0.1, reference pi_0": (
            self_play,
            "dpo",
            0.1,
            {"damping": ETA / 40, "anchored": True},
        ),
        "DPO, offline, beta 1": (train_offline, "dpo", 1.0, {}),
        "DPO, offline, beta 0.1": (train_offline, "dpo", 0.1, {}),
        "IPO, offline, beta 0.1": (train_offline, "ipo", 0.1, {}),
    }
    rows = [
        [title, *(run(game, name, beta, **keywords) for game in made.values())]
        for title, (run, name, beta, keywords) in settings.items()
    ]
    return table(
        "Duality gap: average / last policy of self-play, trained policy offline",
        ["method", *made],
        rows,
    )


def repulsion() -> tuple[str, dict]:
    """How far the equilibrium of the repelled game is from one of the calibrated game: eps <= 2
    lambda M."""
    weights = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    made = [games.random_skew(ACTIONS, seed) for seed in SEEDS]
    solved = [
        [games.repelled_equilibrium(g.calibrated, g.similarity, w) for g in made] for w in weights
    ]
    eps = np.array(
        [
            [games.duality_gap(x, g.calibrated) / 2 for x, g in zip(r, made, strict=True)]
            for r in solved
        ]
    )
    alike = np.array(
        [
            [games.expected_similarity(x, g.similarity) for x, g in zip(r, made, strict=True)]
            for r in solved
        ]
    )
    rows = [
        [f"{w:g}", float(e.max()), 2 * w, float(s.mean())]
        for w, e, s in zip(weights, eps, alike, strict=True)
    ]
    head = ["lambda", "largest eps of 8 games", "2 lambda M", "mean similarity of two samples"]
    return table("Repelled equilibrium, M = 1", head, rows), {"weights": weights, "eps": eps}


def wordings() -> tuple[str, dict]:
    """Rock-paper-scissors in 3 wordings each, an oracle sure of which wording is better: how many
    survive?"""
    game = games.paraphrased(
        games.rock_paper_scissors(0.2, 0.2, 0.2), 3, similarity=0.95, margin=0.4
    )
    calibrated, alike = game.calibrated, game.similarity
    settings = {  # what is played, and where its theory says it ends
        "SPPO": ({"gate_level": "none"}, games.equilibrium(game.preference)),
        "S-SPPO, pair gate": ({"gate_level": "pair"}, None),
        "S-SPPO, each comparison gated": (
            {"gate_level": "pairwise"},
            games.equilibrium(calibrated),
        ),
        "the same with repulsion 1": (
            {"gate_level": "pairwise", "repulsion": 1.0},
            games.repelled_equilibrium(calibrated, alike, 1.0),
        ),
    }
    rows, curves = [], {}
    for title, (batch, end) in settings.items():
        update = exact_update("s_sppo", 1 / ETA, game.preference, alike, **batch)
        curves[title] = effective_wordings(play(update, np.zeros(9, np.float32), ITERATIONS))
        last = "no theorem" if end is None else float(effective_wordings(end))
        rows.append(
            [title, *(float(curves[title][t - 1]) for t in (1, 50, 200, 1000, ITERATIONS)), last]
        )
    head = [
        "effective wordings of a meaning (1 to 3)",
        "start",
        "50",
        "200",
        "1000",
        f"{ITERATIONS} iterations",
    ]
    return (
        table("Near-duplicates and an overconfident oracle", [*head, "equilibrium"], rows),
        curves,
    )


def effective_wordings(policies: np.ndarray) -> np.ndarray:  # [...,9], 3 meanings of 3 wordings
    """exp of the entropy of the wording given the meaning -> [...]."""
    joint = np.asarray(policies, np.float64).reshape(*np.shape(policies)[:-1], 3, 3)
    wording = joint / np.maximum(joint.sum(-1, keepdims=True), 1e-30)
    return np.exp(-np.sum(joint * np.log(np.maximum(wording, 1e-30)), axis=(-1, -2)))


def sampled_play(
    game: games.Game, beta: float, *, iterations: int, gate: str, best_and_worst: bool, seed: int
):
    """Self-play as a run does it: K samples per prompt, win rates estimated from them, one step ->
    [iterations,A]."""
    rng, size = np.random.default_rng(seed), len(game.preference)
    loss, step_size = bound_loss("s_sppo", beta)
    logits, out = jnp.zeros(size), []

    @jax.jit
    def update(logits, actions, rows):
        logp = jax.nn.log_softmax(logits)
        batch = games.pair_batch(
            actions, logp=logp, reference=logp, weight=jnp.ones(GROUPS), **rows
        )
        return jax.nn.log_softmax(games.improve(loss, logits, batch, step_size=step_size))

    for _ in range(iterations):
        policy = np.asarray(jax.nn.softmax(logits), np.float64)
        out.append(policy)
        drawn = rng.choice(size, (GROUPS, K), p=policy / policy.sum())
        every = drawn[:, :, None], drawn[:, None, :]
        made = make_pairs if best_and_worst else first_two
        chosen, rows = made(game.preference[every], game.similarity[every], gate)
        logits = update(logits, np.take_along_axis(drawn, chosen, axis=1), rows)
    return np.array(out)


def make_pairs(preference, similarity, gate: str):
    """Best and worst of K, as training selects them."""
    made, _ = pairs.make_pairs(preference, similarity, gate_level=gate)
    rows = {name: getattr(made, name) for name in ("win_rate", "target", "p_win", "similarity")}
    return np.stack([made.winner, made.loser], axis=1), rows


def first_two(preference, similarity, gate: str):
    """Two of K whatever their win rates; no gate."""
    assert gate == "none", gate
    preference = np.where(np.eye(K) > 0, 0.5, preference)
    rate = pairs.mean_win_rate(preference)[:, :2].astype(np.float32)
    rows = {"win_rate": rate, "target": rate, "p_win": preference[:, 0, 1].astype(np.float32)}
    return np.tile([0, 1], (GROUPS, 1)), rows | {
        "similarity": similarity[:, 0, 1].astype(np.float32)
    }


def samples() -> str:
    """What K samples and the selection of best and worst do to the gap of the averaged policy."""
    cycle, random = games.rock_paper_scissors(*BIASED), games.random_skew(ACTIONS, HARD_SEED)
    settings = {
        "biased cycle, two of K": (cycle, "none", False, cycle.preference),
        "biased cycle, best and worst": (cycle, "none", True, cycle.preference),
        "random, two of K": (random, "none", False, random.preference),
        "random, best and worst": (random, "none", True, random.preference),
        "random, best and worst, pair gate, calibrated game": (
            random,
            "pair",
            True,
            random.calibrated,
        ),
        "random, best and worst, comparisons gated, calibrated game": (
            random,
            "pairwise",
            True,
            random.calibrated,
        ),
    }
    rows, lengths, beta = [], (ITERATIONS // 4, ITERATIONS), 1 / ETA
    for title, (game, gate, best, judge) in settings.items():
        runs = [
            sampled_play(
                game, beta, iterations=ITERATIONS, gate=gate, best_and_worst=best, seed=seed
            )
            for seed in range(2)
        ]
        exact = exact_update("s_sppo", beta, game.preference, game.similarity, gate_level=gate)
        runs.append(play(exact, np.zeros(len(judge), np.float32), ITERATIONS))
        rows.append([title, *(gaps(run[:n], judge)[0] for n in lengths for run in runs)])
    head = ["rows", *(f"{n}, {run}" for n in lengths for run in ("seed 0", "seed 1", "exact"))]
    return table(
        f"Gap of the averaged policy from {GROUPS} groups of {K} samples, by iterations", head, rows
    )


def main(output: Path) -> None:
    start = time.process_time()
    output.mkdir(parents=True, exist_ok=True)
    cycle_table, cycle_data = cycle()
    rates_table, rates_data = rates()
    repulsion_table, repulsion_data = repulsion()
    wordings_table, wordings_data = wordings()
    tables = [
        partition(),
        cycle_table,
        last_iterates(),
        rates_table,
        methods(),
        repulsion_table,
        wordings_table,
        samples(),
    ]
    (output / "tables.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    figures.cycle(output / "cycle.svg", **cycle_data)
    figures.rates(output / "gap.svg", **rates_data)
    figures.calibration(output / "calibration.svg", **repulsion_data, wordings=wordings_data)
    print("\n\n".join(tables))
    print(
        f"\nwrote tables.md, cycle.svg, gap.svg and calibration.svg to {output} "
        f"in {time.process_time() - start:.0f} s of CPU time"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="self-play on intransitive games against their equilibria"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="where tables and plots are written",
    )
    main(parser.parse_args().output)
