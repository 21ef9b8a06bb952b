"""From judged samples to the rows a loss learns from: a selected pair, a whole group, or a policy and its opponent.

A loss's module says which it wants (`losses.ROWS`). Log-probs are not known yet: they are scored afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ssppo_jax.config import call_kwargs
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.distributed import hosts
from ssppo_jax.losses.advantages import ADVANTAGES
from ssppo_jax.losses.gates import GATES
from ssppo_jax.oracles.links import preference_of
from ssppo_jax.oracles.protocol import take_rows
from ssppo_jax.rollout.groups import make_groups
from ssppo_jax.rollout.pairs import make_pairs, mean_win_rate, off_diagonal_mean
from ssppo_jax.rollout.similarity import EmbedCounts, SentenceEmbedder, score_similarity
from ssppo_jax.types import FINISH_LENGTH, FINISH_NAMES, Batch, Samples, Verdict


class Judged(NamedTuple):
    """M prompts, K responses to each, and what the oracle says of them; none failed."""

    encoded: list[EncodedPrompt]
    samples: Samples  # NumPy, leading axis M
    texts: list[list[str]]  # M x K
    verdict: Verdict

    def take(self, rows: np.ndarray) -> Judged:
        """Some of the prompts, in the order of `rows`."""
        return Judged(
            [self.encoded[i] for i in rows],
            Samples(*(x[rows] for x in self.samples)),
            [self.texts[i] for i in rows],
            take_rows(self.verdict, rows),
        )


class Rows(NamedTuple):
    """M training rows, as yet without log-probs."""

    batch: Batch  # NumPy
    sampler_logp: np.ndarray  # [M,K,T] float32, raw log-probs recorded while sampling
    records: list[dict]  # one per row, for people
    stats: dict[str, float]


Assemble = Callable[[ConfigDict, Judged, "SentenceEmbedder | None", int], Rows]


def reward_of(config: ConfigDict, verdict: Verdict) -> np.ndarray:  # [B,K] float32
    """The oracle's rewards, or, where it gave preferences, the win rate of each response in its group."""
    if verdict.reward is not None:
        return verdict.reward
    return mean_win_rate(verdict.preference, include_self=config.pairs.include_self).astype(np.float32)


# ---- a winner and a loser --------------------------------------------------------------------------------------------


def pair_rows(config: ConfigDict, judged: Judged, embedder: SentenceEmbedder | None, iteration: int) -> Rows:
    """The best and the worst of K, with their gated win rates (`pairs.make_pairs`)."""
    similarity, counts = _similarity(config, judged, embedder)
    gate, kwargs = GATES[config.pairs.gate.name], call_kwargs(config.pairs.gate)
    pairs, stats = make_pairs(
        preference_of(judged.verdict, temperature=config.judge.reward_temperature),
        similarity,
        lambda s: gate(s, **kwargs),
        win_rate_estimator=config.pairs.win_rate_estimator,
        include_self=config.pairs.include_self,
        semantic_gate=config.pairs.semantic_gate,
        drop_tied=config.pairs.drop_ties,
    )
    rows = np.flatnonzero(pairs.keep)
    two = np.stack([pairs.winner[rows], pairs.loser[rows]], axis=1)  # [M,2]
    samples = Samples(*(x[rows[:, None], two] for x in judged.samples))
    chosen = [judged.encoded[i] for i in rows]
    batch = _batch(
        chosen,
        samples,
        win_rate=pairs.win_rate[rows],
        target=pairs.target[rows],
        p_win=pairs.p_win[rows],
        similarity=pairs.similarity[rows],
    )
    records = [
        _record(iteration, e, winner=judged.texts[i][w], loser=judged.texts[i][l])
        | {
            "win_rate": pairs.win_rate[i].tolist(),
            "target": pairs.target[i].tolist(),
            "similarity": float(pairs.similarity[i]),
            "p_win": float(pairs.p_win[i]),
            "tied": bool(pairs.tied[i]),
        }
        for e, i, (w, l) in zip(chosen, rows, two, strict=True)
    ]
    values = {name: float(m.result()) for name, m in stats.items()} | {"oracle/pairs": float(len(rows))} | counts
    return Rows(batch, samples.logp, records, values)


def _similarity(config, judged: Judged, embedder: SentenceEmbedder | None) -> tuple[np.ndarray, dict[str, float]]:
    """[B,K,K] similarities, how alike two samples are on average, how many texts were read in part or empty."""

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

    order, parts = hosts.share([e.address for e in judged.encoded], work, "comparing responses")
    matrices, counted = zip(*parts, strict=True)
    matrix = np.concatenate(matrices)[order]
    counts = EmbedCounts(*map(sum, zip(*counted, strict=True)))._asdict() if embedder else {}
    counts["of_two_samples"] = float(off_diagonal_mean(matrix).mean())
    return matrix, {f"similarity/{name}": float(n) for name, n in counts.items()}


# ---- all K with their advantages -------------------------------------------------------------------------------------


def group_rows(config: ConfigDict, judged: Judged, embedder: SentenceEmbedder | None, iteration: int) -> Rows:
    """All K responses with their advantages (`groups.make_groups`)."""
    del embedder
    advantage, kwargs = ADVANTAGES[config.advantage.name], call_kwargs(config.advantage)
    groups, stats = make_groups(
        reward_of(config, judged.verdict),
        judged.samples.length,
        lambda reward: advantage(reward, **kwargs),
        max_length=config.sampling.max_new_tokens,
        overlong_buffer_len=config.group.overlong_buffer_len,
        overlong_penalty_factor=config.group.overlong_penalty_factor,
    )
    truncated = judged.samples.finish == FINISH_LENGTH
    batch = _batch(judged.encoded, judged.samples, advantage=groups.advantage)
    if config.group.mask_truncated_completions:
        batch = batch._replace(mask=batch.mask * ~truncated[:, :, None])
    records = [
        _record(iteration, e, answer=e.prompt.meta.get("answer"), responses=texts)
        | {"reward": reward.tolist(), "advantage": worth.tolist(), "length": length.tolist()}
        | {"finish": [FINISH_NAMES[f] for f in finish]}
        for e, texts, reward, worth, length, finish in zip(
            judged.encoded,
            judged.texts,
            groups.reward,
            groups.advantage,
            judged.samples.length,
            judged.samples.finish,
            strict=True,
        )
    ]
    values = {name: float(m.result()) for name, m in stats.items()}
    values |= {"group/truncated": _mean(truncated), "group/rows": float(len(records))}
    return Rows(batch, judged.samples.logp, records, values)


def _mean(x: np.ndarray) -> float:
    return float(np.mean(x)) if x.size else 0.0


# ---- the policy and its opponent -------------------------------------------------------------------------------------


def opponent_rows(config: ConfigDict, judged: Judged, embedder: SentenceEmbedder | None, iteration: int) -> Rows:
    """The policy's sample at 0 and its opponent's at 1, whoever wins."""
    del embedder
    preference = preference_of(judged.verdict, temperature=config.judge.reward_temperature)
    p_win = preference[:, 0, 1].astype(np.float32)
    rate = np.stack([p_win, 1.0 - p_win], axis=1)
    batch = _batch(judged.encoded, judged.samples, win_rate=rate, target=rate, p_win=p_win)
    records = [
        _record(iteration, e, policy=texts[0], opponent=texts[1]) | {"p_win": float(p)}
        for e, texts, p in zip(judged.encoded, judged.texts, p_win, strict=True)
    ]
    values = {"opponent/p_win": _mean(p_win), "opponent/tied": _mean(p_win == 0.5), "opponent/rows": float(len(p_win))}
    return Rows(batch, judged.samples.logp, records, values)


ASSEMBLE: dict[str, Assemble] = {"pair": pair_rows, "group": group_rows, "opponent": opponent_rows}
RECORDS = {"pair": "pairs.jsonl", "group": "groups.jsonl", "opponent": "opponents.jsonl"}  # files of the run folder


def _batch(encoded: Sequence[EncodedPrompt], samples: Samples, **fields: np.ndarray) -> Batch:
    """Prompts and completions as arrays; log-probs and fields that are not given hold what does not count."""
    length = np.array([len(e.tokens) for e in encoded], np.int32)
    prompt = np.zeros((len(encoded), length.max(initial=1)), np.int32)
    for row, e in zip(prompt, encoded, strict=True):
        row[: len(e.tokens)] = e.tokens
    mask = (np.arange(samples.tokens.shape[2]) < samples.length[..., None]).astype(np.float32)
    per_response, zeros = np.zeros(mask.shape[:2], np.float32), np.zeros_like(mask)
    batch = Batch(
        prompt=prompt,
        prompt_length=length,
        completion=samples.tokens,
        mask=mask,
        old_logp=zeros,
        ref_logp=zeros,
        init_logp=zeros,
        win_rate=per_response + 0.5,
        target=per_response + 0.5,
        p_win=np.full(length.shape, 0.5, np.float32),
        similarity=np.zeros(length.shape, np.float32),
        advantage=per_response,
        weight=np.ones(length.shape, np.float32),
    )
    return batch._replace(**fields)


def _record(iteration: int, e: EncodedPrompt, **texts) -> dict:
    return {"iteration": iteration, "prompt_id": e.prompt.id, "prompt": e.prompt.text, **texts}
