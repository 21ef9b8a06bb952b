"""Collect an iteration's rollout under pi_t: sample, judge, assemble rows, score them."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ssppo_jax import data
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.losses import ROWS
from ssppo_jax.oracles.embedder import SentenceEmbedder
from ssppo_jax.oracles.protocol import Oracle, concatenated, drop_failed, open_journal
from ssppo_jax.rollout.groups import group_rows, reward_of, teaches
from ssppo_jax.rollout.judge import (
    PrefetchJudge,
    identity_of,
    judge,
    mixture_stats,
    part_stats,
)
from ssppo_jax.rollout.opponents import opponent_rows
from ssppo_jax.rollout.pairs import pair_rows
from ssppo_jax.rollout.responses import response_rows
from ssppo_jax.rollout.rows import Judged, Rows, joined
from ssppo_jax.rollout.sample import Responses, sample_prompts
from ssppo_jax.rollout.score import score_batch
from ssppo_jax.rollout.similarity import WITHOUT_ENCODER
from ssppo_jax.rollout.store import Rollout
from ssppo_jax.runs.metrics import sample_stats
from ssppo_jax.runtime import ROLLOUT, Runtime, rollout_params
from ssppo_jax.types import PyTree, Samples

ASSEMBLE = {
    "pair": pair_rows,
    "group": group_rows,
    "opponent": opponent_rows,
    "response": response_rows,
}
RECORDS = {rows: f"{rows}s.jsonl" for rows in ASSEMBLE}  # files of the run folder


@dataclasses.dataclass
class RolloutStats:
    """Count what happened to the prompts of an iteration, over all rounds of sampling."""

    samples: list[Samples] = dataclasses.field(default_factory=list)
    sampling_seconds: float = 0.0
    failed: Counter = dataclasses.field(default_factory=Counter)
    judged: int = 0  # groups that were asked whether their rewards differ
    flat: int = 0  # of these, left out because the rewards are all equal
    surplus: int = 0  # groups beyond what the iteration trains on

    def add(self, sampled: Responses) -> None:
        self.samples.append(sampled.samples)
        self.sampling_seconds += sampled.wall["seconds"]

    def metrics(self) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        """Return the values of the phases generate and judge, and the wall values of generate."""
        samples = joined(self.samples)
        tokens, prompts = int(samples.length.sum()), len(samples.length)
        generated = sample_stats(samples) | {"tokens": float(tokens), "prompts": float(prompts)}
        judged = {"oracle/dropped": float(self.failed.total())}
        judged |= {f"oracle/failed: {reason}": float(n) for reason, n in self.failed.items()}
        seconds = self.sampling_seconds
        return generated, judged, {"seconds": seconds, "tokens_per_second": tokens / seconds}

    def left_out(self) -> dict[str, float]:
        """Return the share of groups that dynamic sampling left out, and the surplus."""
        found = {"group/surplus": float(self.surplus)}
        return found | ({"frac_reward_zero_std": self.flat / self.judged} if self.judged else {})


def sampling_rounds(config: ConfigDict) -> int:
    """Return the most rounds of sampling in an iteration; only dynamic sampling takes several."""
    several = config.group.filter_groups and config.train.prompts_per_iteration
    return config.group.max_num_gen_batches if several else 1


class Collector:
    """Make rollouts.

    Random keys are addressed by (iteration, round, prompt), so a repeated call repeats its result.
    """

    def __init__(
        self,
        runtime: Runtime,
        prompts: list[EncodedPrompt],
        oracle: Oracle,
        score: Callable,
        journal: Path,
        *,
        portions: int,
    ):
        self.runtime, self.config, self.score = runtime, runtime.config, score
        self.prompts, self.oracle = prompts, oracle
        self.portions = portions  # parts of the data: the iterations that the run began with
        self.rows = ROWS.get(self.config.loss.name, "pair")
        self.journal = open_journal(journal)
        self.assemble: Callable[[ConfigDict, Judged, int], Rows] = ASSEMBLE[self.rows]
        if self.rows == "pair":
            self.assemble = functools.partial(pair_rows, embedder=_embedder(runtime))
        self.rounds = sampling_rounds(self.config)
        self._make_samplers()

    def _make_samplers(self) -> None:
        """Make the sampler of the policy, and that of its opponent where the loss has one."""
        config, k = self.config, self.config.sampling.num_samples
        make = functools.partial(self.runtime.make_sampler, sampling=rollout_params(config))
        self.sampler = make(num_samples=1 if self.rows == "opponent" else k)
        if self.rows == "opponent":
            coef = config.loss.mixture_coef
            self.opponent_sampler = make(num_samples=1, weights=(1.0 - coef, coef), first_sample=1)

    def portion_sizes(self) -> list[int]:
        """Return how many prompts each iteration trains on if none is left out."""
        train = self.config.train
        sizes = data.portion_sizes(
            len(self.prompts),
            portions=self.portions,
            prompts_per_iteration=train.prompts_per_iteration,
        )
        return [sizes[t % self.portions] for t in range(train.iterations)]

    def portion(self, iteration: int, sampling_round: int = 0) -> list[EncodedPrompt]:
        """Return the prompts of one round of sampling.

        Rounds are disjoint within a pass over the data.
        """
        rows = data.portion(
            iteration * self.rounds + sampling_round,
            len(self.prompts),
            portions=self.portions,
            prompts_per_iteration=self.config.train.prompts_per_iteration,
            seed=self.config.seed,
        )
        return [self.prompts[i] for i in rows]

    def __call__(
        self,
        params: PyTree,  # of pi_t
        initial: Callable[[], PyTree] | None,  # loads the initial policy
        iteration: int,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Rollout:
        """Make the rollout of an iteration.

        Raises:
          GateError: too many prompts failed, or sampler and trainer disagree on the same tokens.
          Interrupted: `stopped()` became true; the journal holds the verdicts so far.
        """
        start, counts = time.perf_counter(), RolloutStats()
        if self.rows == "opponent" and initial is not None:
            initial = functools.cache(initial)  # the opponent, and the reference: loaded once
        judged = self._judged(params, initial, iteration, stopped, counts)
        generated, verdicts, sampling = counts.metrics()
        rows = self.assemble(self.config, judged, iteration)
        seconds = time.perf_counter() - start - counts.sampling_seconds
        verdicts |= rows.stats | part_stats(judged.verdict, judged.texts)
        verdicts |= mixture_stats(judged.encoded, judged.verdict)
        if self.rows == "group":
            verdicts |= counts.left_out()
        batch, scored, scoring = score_batch(
            self.runtime, self.score, rows.batch, rows.samples, params, initial
        )
        return Rollout(
            batch,
            rows.records,
            {"generate": generated, "judge": verdicts, "score": scored},
            {"generate": sampling, "judge": {"seconds": seconds}, "score": scoring},
        )

    def _judged(self, params, initial, iteration: int, stopped, counts: RolloutStats) -> Judged:
        """Sample and judge prompts; with group.filter_groups, round by round until enough groups
        differ.
        """
        parts: list[Judged] = []
        for sampling_round in range(self.rounds):
            encoded = self.portion(iteration, sampling_round)
            key = self.runtime.key(ROLLOUT, iteration * self.rounds + sampling_round)
            what = f"sample {iteration + 1}/{self.config.train.iterations}"
            with PrefetchJudge(
                self.oracle, journal=self.journal, identity=identity_of(self.config)
            ) as ahead:
                sampled = self._sample(
                    params, initial, encoded, key, ahead, stopped=stopped, what=what
                )
            counts.add(sampled)
            parts.append(self._kept(encoded, sampled, stopped, counts))
            if sum(len(part.encoded) for part in parts) >= len(encoded):
                break
        judged = _merged(parts) if len(parts) > 1 else parts[0]
        wanted = min(len(judged.encoded), len(encoded))
        counts.surplus = len(judged.encoded) - wanted
        return judged.take(np.arange(wanted)) if counts.surplus else judged

    def _sample(
        self, params, initial, encoded, key, ahead: PrefetchJudge, *, stopped, what
    ) -> Responses:
        """Draw K samples of the policy; for opponent rows one of the policy and one of its
        opponent.
        """
        draw = functools.partial(
            sample_prompts, self.runtime, encoded=encoded, key=key, stopped=stopped
        )
        if self.rows != "opponent":
            return draw(
                self.sampler, params, done=lambda some, _, texts: ahead.add(some, texts), what=what
            )
        own = draw(self.sampler, params, what=what)
        other = draw(self.opponent_sampler, (params, initial()), what=what + " (opponent)")
        texts = [a + b for a, b in zip(own.texts, other.texts, strict=True)]
        seconds = own.wall["seconds"] + other.wall["seconds"]
        both = joined((own.samples, other.samples), axis=1)
        return Responses(both, texts, {}, {"seconds": seconds})

    def _kept(self, encoded, sampled: Responses, stopped, counts: RolloutStats) -> Judged:
        """Return the prompts that the oracle judged and, with group.filter_groups, whose rewards
        differ.
        """
        verdict = judge(
            self.oracle,
            encoded,
            sampled.texts,
            journal=self.journal,
            identity=identity_of(self.config),
            stopped=stopped,
        )
        kept = drop_failed(verdict, max_failed_fraction=self.config.oracle.max_failed_fraction)
        counts.failed.update(kept.reasons)
        judged = Judged(encoded, sampled.samples, sampled.texts, verdict).take(kept.rows)
        if not self.config.group.filter_groups:
            return judged
        different = np.flatnonzero(teaches(reward_of(self.config, judged.verdict)))
        counts.judged += len(judged.encoded)
        counts.flat += len(judged.encoded) - len(different)
        return judged.take(different)


def _merged(parts: list[Judged]) -> Judged:
    return Judged(
        [e for part in parts for e in part.encoded],
        joined([part.samples for part in parts]),
        [group for part in parts for group in part.texts],
        concatenated([part.verdict for part in parts]),
    )


def _embedder(runtime: Runtime) -> SentenceEmbedder | None:
    similarity = runtime.config.similarity
    if similarity.name in WITHOUT_ENCODER:
        return None
    return SentenceEmbedder.load(similarity.encoder, max_length=similarity.max_length)
