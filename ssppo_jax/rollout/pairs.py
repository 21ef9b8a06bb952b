"""Turn K judged responses into one training pair, on the host in NumPy.

A preference matrix holds P[i,j] = P(y_i > y_j) with P + P^T = 1. Arithmetic is float64, results are
float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from ml_collections import ConfigDict

from ssppo_jax.config import bind
from ssppo_jax.config.nodes import nearest
from ssppo_jax.distributed import hosts
from ssppo_jax.errors import ConfigError
from ssppo_jax.losses import GATES, TIES
from ssppo_jax.losses.gates import calibrate, linear
from ssppo_jax.oracles.embedder import EmbedCounts, SentenceEmbedder
from ssppo_jax.oracles.links import preference_of
from ssppo_jax.rollout.rows import Judged, Rows, batch_of, group_means, record_of
from ssppo_jax.rollout.similarity import score_similarity
from ssppo_jax.types import Array, Samples

# logits are taken of P cut to [1e-6, 1 - 1e-6], i.e. scores of at most 13.8: P may be 0 or 1
SCORE_CLIP = 1e-6
TIE = 1e-6  # scores closer than this are equal
TOLERANCE = 1e-3  # P + P^T may be so far from 1, and S from S^T: more is no rounding

GATE_LEVELS = ("pair", "group_mean", "pairwise", "none")


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Hold B selected pairs. In [B,2] fields the winner is at 0 and the loser at 1, as in a
    `Batch`.
    """

    winner: np.ndarray  # [B] int32, index into K
    loser: np.ndarray  # [B] int32, never equal to winner
    win_rate: np.ndarray  # [B,2] float32, P(y > pi_t) before the gate
    target: np.ndarray  # [B,2] float32, after it
    p_win: np.ndarray  # [B] float32, P(winner > loser) under the win-rate estimator, not gated
    similarity: np.ndarray  # [B] float32 in [-1,1], of winner and loser; 0 when none was given
    tied: np.ndarray  # [B] bool, all K mean scores equal: winner and loser are then arbitrary
    keep: np.ndarray  # [B] bool, False for the tied groups if they are to be dropped


def pair_rows(
    config: ConfigDict, judged: Judged, iteration: int, *, embedder: SentenceEmbedder | None = None
) -> Rows:
    """Make pair rows: the best and worst of K with their gated win rates (see `make_pairs`).

    A tied group has neither. Its row has weight 0 where the loss takes the winner for certain
    (`losses.TIES`), unless `pairs.train_ties` asks for it.
    """
    similarity, counts = _similarity(config, judged, embedder)
    pairs, stats = make_pairs(
        preference_of(judged.verdict, temperature=config.oracle.reward_temperature),
        similarity,
        bind(GATES, config.pairs.gate),
        win_rate_estimator=config.pairs.win_rate_estimator,
        include_self=config.pairs.include_self,
        gate_level=config.pairs.gate_level,
        drop_tied=config.pairs.drop_ties,
        win_rate=judged.win_rate,
    )
    rows = np.flatnonzero(pairs.keep)
    two = np.stack([pairs.winner[rows], pairs.loser[rows]], axis=1)  # [M,2]
    samples = Samples(*(x[rows[:, None], two] for x in judged.samples))
    chosen = [judged.encoded[i] for i in rows]
    weightless = pairs.tied[rows] & (not (config.pairs.train_ties or config.loss.name in TIES))
    batch = batch_of(
        chosen,
        samples,
        win_rate=pairs.win_rate[rows],
        target=pairs.target[rows],
        p_win=pairs.p_win[rows],
        similarity=pairs.similarity[rows],
        weight=(~weightless).astype(np.float32),
    )
    records = [
        record_of(iteration, e, winner=judged.texts[i][w], loser=judged.texts[i][l])
        | {
            "win_rate": pairs.win_rate[i].tolist(),
            "target": pairs.target[i].tolist(),
            "similarity": float(pairs.similarity[i]),
            "p_win": float(pairs.p_win[i]),
            "tied": bool(pairs.tied[i]),
        }
        for e, i, (w, l) in zip(chosen, rows, two, strict=True)
    ]
    stats |= {"oracle/pairs": float(len(rows)), "pairs/weightless": float(weightless.sum())}
    return Rows(batch, samples, records, stats | counts)


def _similarity(
    config, judged: Judged, embedder: SentenceEmbedder | None
) -> tuple[np.ndarray, dict[str, float]]:
    """Return the similarities [B,K,K], their mean over two samples, and the counts of cut or empty
    texts.
    """

    if not judged.encoded:  # every prompt failed
        k = judged.samples.length.shape[1]
        return np.zeros((0, k, k), np.float32), {}

    def work(rows: np.ndarray) -> tuple[np.ndarray, EmbedCounts]:
        matrix = score_similarity(
            [judged.encoded[i].prompt.text for i in rows],
            [judged.texts[i] for i in rows],
            embedder.embed if embedder else None,
            similarity=config.similarity.name,
            embed_text=config.similarity.embed_text,
            prefix=config.similarity.prefix,
        )
        return matrix, embedder.take_counts() if embedder else EmbedCounts()

    order, parts = hosts.share(
        [int(e.address) for e in judged.encoded], work, "comparing responses"
    )
    matrices, counted = zip(*parts, strict=True)
    matrix = np.concatenate(matrices)[order]
    counts: dict[str, float] = {}
    if embedder:
        totals = np.sum(np.array(counted), axis=0)
        counts |= dict(zip(EmbedCounts._fields, totals.tolist(), strict=True))
    counts["of_two_samples"] = float(off_diagonal_mean(matrix).mean())
    return matrix, {f"similarity/{name}": float(n) for name, n in counts.items()}


def scores(preference: np.ndarray) -> np.ndarray:  # [B,K,K]
    """Return each response's mean score: the row mean of s_ij = logit P_ij, with s_ii = 0 included.

    SPPO (arXiv 2405.00675) ranks by the mean of the oracle's scores. The logit gives them back from
    a preference matrix, clipped at `SCORE_CLIP`.
    """
    clipped = np.clip(preference, SCORE_CLIP, 1.0 - SCORE_CLIP)
    return np.mean(np.log(clipped) - np.log1p(-clipped), axis=-1)


def pairwise(preference: np.ndarray) -> np.ndarray:  # [B,K,K]
    """Return the comparisons as judged (SPPO's and S-SPPO's papers), intransitive ones included."""
    return preference


def score_bt(preference: np.ndarray) -> np.ndarray:  # [B,K,K]
    """Return P_ij = sigmoid(score_i - score_j), score_i = 1/K sum_j (s_ij - s_ji), as SPPO's code
    does.

    The result is Bradley-Terry, hence transitive, and every P_ij depends on all K responses. Where
    s_ij = a_i - a_j, the difference is 2 (a_i - a_j): twice as sharp as `pairwise`. s is the
    clipped logit of P (see `scores`).
    """
    score = 2.0 * scores(preference)
    return 0.5 * (1.0 + np.tanh(0.5 * (score[:, :, None] - score[:, None, :])))


def hard(preference: np.ndarray) -> np.ndarray:  # [B,K,K]
    """Round every comparison to 1, 1/2 (exact tie) or 0; drops confidence (reconstruction)."""
    return 0.5 * (1.0 + np.sign(preference - 0.5))


WIN_RATE_ESTIMATORS = {"pairwise": pairwise, "score_bt": score_bt, "hard": hard}


def mean_win_rate(preference: np.ndarray, *, include_self: bool = True) -> np.ndarray:  # [B,K,K]
    """Estimate P(y_i > pi_t) over the K samples, [B,K].

    With the self pair: 1/K sum_j P_ij with P_ii = 1/2, as in both papers. It lies in [1/(2K), 1 -
    1/(2K)] and sums to K/2. Without it: 1/(K-1) sum_{j != i} P_ij, which is unbiased and sums to
    K/2 too.

    Args:
      include_self: count the comparison of a response with itself (1/2), as the papers do
    """
    k = preference.shape[-1]
    total = preference.sum(axis=-1)
    return total / k if include_self else (total - 0.5) / (k - 1)


def select(score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # [B,K]
    """Select winner (highest score) and loser (lowest), and say which groups are tied, [B] each.

    Among equal scores (within `TIE`) the first index wins. Where all K are equal the group is tied,
    with winner 0 and loser 1. Winner and loser always differ.
    """
    top, bottom = score.max(axis=1, keepdims=True), score.min(axis=1, keepdims=True)
    tied = (top - bottom)[:, 0] <= 2.0 * TIE
    winner = np.where(tied, 0, np.argmax(score >= top - TIE, axis=1))
    loser = np.where(tied, 1, np.argmax(score <= bottom + TIE, axis=1))
    return winner.astype(np.int32), loser.astype(np.int32), tied


def make_pairs(
    preference: np.ndarray,  # [B,K,K] float32, no failed rows
    similarity: np.ndarray | None,  # [B,K,K] float32, symmetric; None only with gate_level "none"
    gate: Callable[..., Array] = linear,  # S -> factor, an entry of `GATES`, keywords bound
    *,
    win_rate_estimator: str = "pairwise",
    include_self: bool = True,
    gate_level: str = "pair",
    drop_tied: bool = False,
    win_rate: np.ndarray | None = None,  # [B,K], in place of the estimate
) -> tuple[Pairs, dict[str, float]]:
    """Select the best and worst of K and calibrate their win rates: S-SPPO (arXiv 2606.01561)
    section 3.1, Algorithm 1.

    With g the `gate`: `pair` uses g(S_wl) for both (Algorithm 1, what the paper runs); `group_mean`
    uses g(mean_{j != i} S_ij) for each (eq. 3.1); `pairwise` gates each P_ij by g(S_ij) before
    averaging (the form of the proof); `none` leaves the win rates. Selection never depends on the
    gate. The statistics are means over the B groups.

    Raises ConfigError for an unknown name and ValueError for matrices that break their contract.

    Args:
      win_rate_estimator: pairwise (papers), score_bt (SPPO's published code) or hard
      include_self: count the comparison of a response with itself (1/2), as the papers do
      gate_level: pair, group_mean, pairwise or none
      drop_tied: drop groups whose K responses all score the same
      win_rate: P(y > pi_t) as the data has it
    """
    estimator = WIN_RATE_ESTIMATORS[
        _known("win_rate_estimator", win_rate_estimator, WIN_RATE_ESTIMATORS)
    ]
    _known("gate_level", gate_level, GATE_LEVELS)
    matrix = estimator(_checked_preference(preference))
    similarity = _checked_similarity(similarity, matrix.shape, gate_level)

    winner, loser, tied = select(scores(matrix))
    rate = mean_win_rate(matrix, include_self=include_self) if win_rate is None else win_rate
    if win_rate is not None and gate_level == "pairwise":
        raise ConfigError(
            "pairs.gate_level=pairwise gates the comparisons that a win rate is the mean of, and"
            " the data gives win rates (chosen_probs_win); set pairs.gate_level=pair, or"
            " data.source.judged_by=label"
        )
    rows = np.arange(len(matrix))
    if gate_level == "pairwise":
        calibrated = np.asarray(calibrate(matrix, gate(similarity)))
        target = mean_win_rate(calibrated, include_self=include_self)
    elif gate_level == "none":
        target = rate
    else:
        of_the_pair = similarity[rows, winner, loser][:, None]
        alike = of_the_pair if gate_level == "pair" else off_diagonal_mean(similarity)
        target = np.asarray(calibrate(rate, gate(alike)))

    def of_pair(x):
        return np.stack([x[rows, winner], x[rows, loser]], axis=-1).astype(np.float32)

    pairs = Pairs(
        winner=winner,
        loser=loser,
        win_rate=of_pair(rate),
        target=of_pair(target),
        p_win=matrix[rows, winner, loser].astype(np.float32),
        similarity=similarity[rows, winner, loser].astype(np.float32),
        tied=tied,
        keep=~tied if drop_tied else np.ones_like(tied),
    )
    return pairs, _stats(pairs)


def off_diagonal_mean(similarity: np.ndarray) -> np.ndarray:  # [B,K,K]
    """Return 1/(K-1) sum_{j != i} S_ij, [B,K]."""
    off_diagonal = 1.0 - np.eye(similarity.shape[-1])
    return np.sum(similarity * off_diagonal, axis=-1) / (similarity.shape[-1] - 1)


def _stats(pairs: Pairs) -> dict[str, float]:
    """Average margins before and after the gate, similarity, and the shares tied, inverted,
    amplified and dropped.

    A pair is amplified if the gate widened its margin, as a negative cosine makes it do. A pair is
    inverted if the winner by mean score has the lower win rate. That is possible because the papers
    select by the score and train on the win rate.
    """
    margin_raw = pairs.win_rate[:, 0] - pairs.win_rate[:, 1]
    margin_gated = pairs.target[:, 0] - pairs.target[:, 1]
    return group_means(
        {
            "pairs/margin_raw": margin_raw,
            "pairs/margin_gated": margin_gated,
            "pairs/similarity": pairs.similarity,
            "pairs/tied": pairs.tied,
            "pairs/inverted": margin_raw < -TIE,
            "pairs/amplified": np.abs(margin_gated) > np.abs(margin_raw) + TIE,
            "pairs/dropped": ~pairs.keep,
        }
    )


def _known(field: str, name: str, allowed: Iterable[str]) -> str:
    if name not in allowed:
        raise ConfigError(
            f"{field}={name!r} is unknown; {nearest(name, allowed)}use one of {', '.join(allowed)}"
        )
    return name


def _checked_preference(preference: np.ndarray) -> np.ndarray:
    """Return the matrix in float64, exactly antisymmetric about 1/2. Raise ValueError if it cannot
    be.
    """
    p = np.asarray(preference, np.float64)
    if p.ndim != 3 or p.shape[1] != p.shape[2] or p.shape[1] < 2:
        raise ValueError(
            f"preference has shape {p.shape}, need [B,K,K] with K >= 2: sample at least 2 per"
            " prompt"
        )
    off_diagonal = ~np.eye(p.shape[1], dtype=bool)
    in_range = (p >= 0) & (p <= 1)  # False for NaN
    p = np.where(in_range, p, 0.5)
    complementary = np.abs(p + p.swapaxes(1, 2) - 1.0) <= TOLERANCE
    bad = ~np.all(in_range & (complementary | ~off_diagonal), axis=(1, 2))
    if bad.any():
        raise ValueError(
            f"preference rows {np.flatnonzero(bad)[:8].tolist()} are not P(i beats j) in [0,1] with"
            " P + P^T = 1: drop the groups the oracle failed on, and let an oracle average both"
            " orders"
        )
    p = 0.5 * (p + 1.0 - p.swapaxes(1, 2))
    return np.where(off_diagonal, p, 0.5)


def _checked_similarity(
    similarity: np.ndarray | None, shape: tuple[int, ...], gate_level: str
) -> np.ndarray:
    """Return S in float64, or zeros where no gate needs it. Raise ValueError for a bad matrix.

    Negative values stay: whether they occur is the similarity's choice (`similarity.name`).
    """
    if similarity is None:
        if gate_level == "none":
            return np.zeros(shape)
        raise ValueError(
            f"gate_level={gate_level!r} needs a similarity matrix: give one, or use 'none'"
        )
    s = np.asarray(similarity, np.float64)
    if s.shape != shape:
        raise ValueError(
            f"similarity has shape {s.shape}, preference {shape}: both are [B,K,K] of the same"
            " samples"
        )
    in_range = np.abs(s) <= 1.0 + TOLERANCE  # False for NaN
    s = np.where(in_range, s, 0.0)
    bad = ~np.all(in_range & (np.abs(s - s.swapaxes(1, 2)) <= TOLERANCE), axis=(1, 2))
    if bad.any():
        raise ValueError(
            f"similarity rows {np.flatnonzero(bad)[:8].tolist()} are not symmetric numbers in"
            " [-1,1]: normalise the embeddings, and give an empty response a zero vector"
        )
    return np.clip(0.5 * (s + s.swapaxes(1, 2)), -1.0, 1.0)
