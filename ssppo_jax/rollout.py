"""One iteration's training data: sampled, judged, gated, paired, scored. Made before any update, then only read.

The rollout is written to disk, because a resumed run cannot make it again: the policy that sampled it is gone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from ssppo_jax.config import call_kwargs
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.errors import DataError, GateError
from ssppo_jax.losses.gates import GATES
from ssppo_jax.oracles.protocol import Journal, Oracle, consult, drop_failed, oracle_identity
from ssppo_jax.pairs import Pairs, make_pairs
from ssppo_jax.parallel import put_rows
from ssppo_jax.progress import bar
from ssppo_jax.runtime import Runtime
from ssppo_jax.sample_phase import Interrupted, Sampled
from ssppo_jax.similarity import SentenceEmbedder, score_similarity
from ssppo_jax.types import Batch, PyTree, Verdict

JUDGED_AT_ONCE = 64  # prompts per oracle call: what an interruption can lose


@dataclasses.dataclass(frozen=True)
class Rollout:
    """M training rows (K = 2: winner, loser) and what was measured while making them."""

    batch: Batch  # NumPy, leading axis M; prompts padded to the longest
    records: list[dict]  # one per row, for people: texts, win rates, similarity
    metrics: dict[str, dict[str, float]]  # phase -> values, written to the log when the rollout is used
    wall: dict[str, dict[str, float]]


def judge(
    oracle: Oracle,
    encoded: Sequence[EncodedPrompt],
    texts: list[list[str]],
    *,
    journal: Journal | None,
    identity: str,
    stopped: Callable[[], bool] = lambda: False,
) -> Verdict:
    """The oracle's verdict on every group, a few prompts at a time, each journalled once it is known.

    Raises:
      Interrupted: `stopped()` became true; what was judged so far is in the journal.
    """
    parts: list[Verdict] = []
    with bar(len(encoded), what="judge", unit="prompts") as progress:
        for start in range(0, len(encoded), JUDGED_AT_ONCE):
            if stopped():
                raise Interrupted
            rows = slice(start, start + JUDGED_AT_ONCE)
            prompts = [e.prompt for e in encoded[rows]]
            parts.append(consult(oracle, prompts, texts[rows], journal=journal, identity=identity))
            progress.update(len(prompts))
    preference, reward = (
        None if parts[0][i] is None else np.concatenate([part[i] for part in parts]) for i in range(2)
    )
    return Verdict(preference, reward, tuple(f for part in parts for f in part.failed))


def identity_of(config) -> str:
    """The configured oracle's part of journal keys."""
    return oracle_identity(config.oracle.name, call_kwargs(config.oracle))


def make_rollout(
    runtime: Runtime,
    encoded: Sequence[EncodedPrompt],
    sampled: Sampled,
    verdict: Verdict,
    embedder: SentenceEmbedder | None,
    score: Callable,  # score(params, batch fields) -> Scored, jitted
    params: PyTree,  # of pi_t
    initial: Callable[[], PyTree] | None,  # loads the initial policy
    *,
    iteration: int,
) -> Rollout:
    """Drop what failed, gate and select pairs, and score them under pi_t and the initial policy.

    Raises:
      GateError: too many failures, or sampler and trainer disagree on the log-probs of the same tokens.
    """
    config = runtime.config
    start = time.perf_counter()
    kept = drop_failed(verdict, max_failed_fraction=config.judge.max_failed_fraction)
    encoded = [encoded[i] for i in kept.rows]
    texts = [sampled.texts[i] for i in kept.rows]
    similarity, counts = _similarity(config, encoded, texts, embedder)
    pairs, stats = _pairs(config, kept.verdict, similarity)
    rows = np.flatnonzero(pairs.keep)
    judged = {name: float(m.result()) for name, m in stats.items()}
    judged |= {"oracle/dropped": float(kept.dropped), "oracle/pairs": float(len(rows))}
    judged |= counts
    judged |= {f"oracle/failed: {reason}": float(n) for reason, n in kept.reasons.items()}
    pairing = time.perf_counter() - start
    chosen = [encoded[i] for i in rows]
    batch, sampler_logp = _assemble(sampled, kept.rows[rows], chosen, pairs, rows)
    batch, scored, scoring = _score(runtime, score, batch, sampler_logp, params, initial)
    return Rollout(
        batch,
        _records(iteration, chosen, [texts[i] for i in rows], pairs, rows),
        {"generate": sampled.metrics, "judge": judged, "score": scored},
        {"generate": sampled.wall, "judge": {"seconds": pairing}, "score": scoring},
    )


def _similarity(config, encoded, texts, embedder: SentenceEmbedder | None) -> tuple[np.ndarray, dict[str, float]]:
    """[B,K,K] similarities, and how many texts the encoder read only in part or found empty."""
    matrix = score_similarity(
        [e.prompt.text for e in encoded],
        texts,
        embedder.embed if embedder else None,
        similarity=config.similarity.name,
        embed_text=config.similarity.embed_text,
    )
    counts = embedder.take_counts()._asdict() if embedder else {}
    return matrix, {f"similarity/{name}": float(n) for name, n in counts.items()}


def _pairs(config, verdict: Verdict, similarity: np.ndarray):
    if verdict.preference is None:
        raise DataError("this oracle gives rewards; preference losses need an oracle that gives preferences")
    gate, kwargs = GATES[config.pairs.gate.name], call_kwargs(config.pairs.gate)
    return make_pairs(
        verdict.preference,
        similarity,
        lambda s: gate(s, **kwargs),
        win_rate_estimator=config.pairs.win_rate_estimator,
        include_self=config.pairs.include_self,
        semantic_gate=config.pairs.semantic_gate,
        drop_tied=config.pairs.drop_ties,
    )


def _assemble(sampled: Sampled, source: np.ndarray, chosen, pairs: Pairs, rows: np.ndarray) -> tuple[Batch, np.ndarray]:
    """The selected winners and losers as a Batch (log-probs still zero), and the sampler's log-probs of them."""
    winner_loser = np.stack([pairs.winner[rows], pairs.loser[rows]], axis=1)  # [M,2]

    def take(x):  # [M0,K,...] -> [M,2,...]
        return x[source[:, None], winner_loser]

    length = np.array([len(e.tokens) for e in chosen], np.int32)
    prompt = np.zeros((len(chosen), length.max()), np.int32)
    for row, e in zip(prompt, chosen, strict=True):
        row[: len(e.tokens)] = e.tokens
    tokens = take(sampled.samples.tokens)
    mask = (np.arange(tokens.shape[2]) < take(sampled.samples.length)[..., None]).astype(np.float32)
    zeros = np.zeros(tokens.shape, np.float32)
    batch = Batch(
        prompt=prompt,
        prompt_length=length,
        completion=tokens,
        mask=mask,
        old_logp=zeros,
        ref_logp=zeros,
        init_logp=zeros,
        win_rate=pairs.win_rate[rows],
        target=pairs.target[rows],
        p_win=pairs.p_win[rows],
        similarity=pairs.similarity[rows],
        advantage=np.zeros((*length.shape, 2), np.float32),
        weight=np.ones(length.shape, np.float32),
    )
    return batch, take(sampled.samples.logp)


def _score(runtime: Runtime, score, batch: Batch, sampler_logp: np.ndarray, params, initial):
    """Log-probs under pi_t (always) and the initial policy (when given); the step-0 gate; entropy and KL so far."""
    config, start = runtime.config, time.perf_counter()
    logp, entropy = score_rows(runtime, score, params, batch)
    gap = float(np.max(np.abs(logp - sampler_logp) * batch.mask))
    if not gap <= config.train.sampler_tolerance:
        raise GateError(
            f"sampler and trainer disagree: max |log-prob difference| of the same tokens is {gap:.3g}, allowed "
            f"train.sampler_tolerance={config.train.sampler_tolerance:g}. With dtype bfloat16 a larger tolerance is "
            "normal; in float32 this is a bug in the model code or a damaged weight"
        )
    init_logp = np.zeros_like(logp)
    if initial is not None:
        init_logp, _ = score_rows(runtime, score, initial(), batch)
    ref_logp = init_logp if config.train.reference == "initial" else logp
    tokens = float(batch.mask.sum())
    metrics = {
        "sampler_gap": gap,
        "entropy": float(entropy.sum()) / tokens,
        "logp_per_token": float(logp.sum()) / tokens,
    }
    if initial is not None:
        metrics["init_logp_per_token"] = float(init_logp.sum()) / tokens
        metrics["kl_to_initial"] = float((logp - init_logp).sum()) / (batch.mask.shape[0] * batch.mask.shape[1])
    batch = batch._replace(old_logp=logp, ref_logp=ref_logp, init_logp=init_logp)
    return batch, metrics, {"seconds": time.perf_counter() - start}


def score_rows(runtime: Runtime, score, params: PyTree, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Token log-probs and entropies of every row, [M,2,T] each, in batches of the training micro-batch's shape."""
    config = runtime.config
    size = config.train.batch_size // config.train.micro_batches
    logp, entropy = np.zeros_like(batch.mask), np.zeros_like(batch.mask)
    with bar(len(batch.weight), what="score", unit="pairs") as progress:
        for rows in _by_length(batch.prompt_length, size):
            part = take_rows(batch, rows, size, config.data.prompt_buckets)
            fields = (part.prompt, part.prompt_length, part.completion, part.mask)
            scored = jax.device_get(score(params, *put_rows(runtime.mesh, fields)))
            logp[rows], entropy[rows] = scored.logp[: len(rows)], scored.entropy[: len(rows)]
            progress.update(len(rows))
    return logp, entropy


def _by_length(length: np.ndarray, size: int) -> Iterator[np.ndarray]:
    order = np.argsort(length, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def take_rows(batch: Batch, rows: np.ndarray, size: int, buckets: Sequence[int]) -> Batch:
    """`size` rows of a rollout: prompts padded to a bucket, missing rows filled with weight 0 and an empty mask."""
    fill = size - len(rows)
    index = np.concatenate([rows, np.full(fill, rows[0], rows.dtype)])
    part = jax.tree.map(lambda x: x[index], batch)
    real = np.arange(size) < len(rows)
    width = next(b for b in buckets if b >= part.prompt_length.max())
    prompt = np.zeros((size, width), np.int32)
    shared = min(width, part.prompt.shape[1])
    prompt[:, :shared] = part.prompt[:, :shared]
    return part._replace(
        prompt=prompt,
        mask=part.mask * real[:, None, None].astype(np.float32),
        weight=part.weight * real.astype(np.float32),
    )


def _records(iteration: int, chosen, texts, pairs: Pairs, rows: np.ndarray) -> list[dict]:
    return [
        {
            "iteration": iteration,
            "prompt_id": e.prompt.id,
            "prompt": e.prompt.text,
            "winner": group[pairs.winner[i]],
            "loser": group[pairs.loser[i]],
            "win_rate": pairs.win_rate[i].tolist(),
            "target": pairs.target[i].tolist(),
            "similarity": float(pairs.similarity[i]),
            "p_win": float(pairs.p_win[i]),
            "tied": bool(pairs.tied[i]),
        }
        for e, group, i in zip(chosen, texts, rows, strict=True)
    ]


def save_rollout(path: Path, rollout: Rollout, identity: dict) -> None:
    """Write atomically; `identity` (run, iteration, step) says whose it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"identity": identity, "records": rollout.records, "metrics": rollout.metrics, "wall": rollout.wall}
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        np.savez(file, meta=text, **rollout.batch._asdict())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_rollout(path: Path, identity: dict) -> Rollout | None:
    """The rollout at `path` if it is this one, else None."""
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            meta = json.loads(file["meta"].tobytes())
            arrays = {name: file[name] for name in Batch._fields}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged rollout ({error}); delete the file to sample this iteration again") from error
    if meta["identity"] != identity:
        return None
    return Rollout(Batch(**arrays), meta["records"], meta["metrics"], meta["wall"])
