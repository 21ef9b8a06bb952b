"""Make rollouts of responses that came with the data: nothing is sampled and nothing is judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from ssppo_jax.data import EncodedPrompt
from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles.protocol import verdict_of
from ssppo_jax.rollout.collect import Collector
from ssppo_jax.rollout.rows import Judged, Rows, samples_of
from ssppo_jax.rollout.score import score_batch
from ssppo_jax.rollout.store import Rollout
from ssppo_jax.types import PyTree

RECORDED = 200  # rows of an iteration that are written for people; the data holds all of them


class GivenCollector(Collector):
    """Make rollouts of given responses: assemble rows, gate them, score them under pi_t.

    They are scored once in an iteration, before its first update. With train.iterations=1, or
    train.reference=initial, the reference is the policy that the run began with.
    """

    def _make_samplers(self) -> None:
        """Make none."""

    def assembled(self, encoded: Sequence[EncodedPrompt], iteration: int) -> Rows:
        """Return training rows without log-probs."""
        judged = judged_of(encoded, self.config.sampling.max_new_tokens)
        return self.assemble(self.config, judged, iteration)

    def __call__(
        self,
        params: PyTree,
        initial: Callable[[], PyTree] | None,
        iteration: int,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Rollout:
        """Make the rollout of an iteration.

        Raises:
          GateError: the policy gives log-probs that are not finite.
        """
        del stopped
        start = time.perf_counter()
        rows = self.assembled(self.portion(iteration), iteration)
        metrics = {"judge": rows.stats}
        wall = {"judge": {"seconds": time.perf_counter() - start}}
        batch = rows.batch
        if self.rows != "response":  # SFT has no reference
            batch, metrics["score"], wall["score"] = score_batch(
                self.runtime, self.score, batch, None, params, initial
            )
        return Rollout(batch, rows.records[:RECORDED], metrics, wall)


def judged_of(encoded: Sequence[EncodedPrompt], slots: int) -> Judged:
    """Return given responses as if they had been sampled and judged; log-probs are 0.

    Args:
      encoded: prompts with responses, the same number of each.
      slots: T, completion slots.
    """
    samples = samples_of([e.completions for e in encoded], slots, len(encoded[0].completions))
    given = [e.prompt.given for e in encoded if e.prompt.given is not None]
    values = np.array([g.preference or g.reward or (0.0,) for g in given], np.float32)
    verdict = verdict_of(values, (None,) * len(encoded), None)
    rate = np.array([g.win_rate for g in given]) if given[0].win_rate else None
    return Judged(list(encoded), samples, [list(g.texts) for g in given], verdict, rate)


def check_given(encoded: Sequence[EncodedPrompt], loss: str, rows: str) -> None:
    """Check that the data has what the loss learns from.

    Raises:
      ConfigError: a pair loss, and one response to each prompt.
    """
    if rows == "pair" and len(encoded[0].completions) < 2:
        raise ConfigError(
            f"loss.name={loss} learns from pairs, and the data has one response to each prompt;"
            ' give rows with "chosen" and "rejected", or set loss.name=sft'
        )
