"""Evaluate a policy during its run: on held-out prompts, by all oracles, against its opponents."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ssppo_jax.data import EncodedPrompt
from ssppo_jax.distributed import hosts
from ssppo_jax.distributed.mesh import put_rows, replicated
from ssppo_jax.distributed.progress import bar
from ssppo_jax.errors import ConfigError
from ssppo_jax.evaluate import (
    HeldOut,
    compare_all,
    intervals,
    logged,
    prefix,
    read_references,
    rewards,
    shown,
)
from ssppo_jax.files import read_json, read_records
from ssppo_jax.losses import ROWS
from ssppo_jax.models.policy import Apply
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.named import build_named
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.rollout.given import GivenCollector
from ssppo_jax.rollout.judge import place_oracle
from ssppo_jax.rollout.sample import Responses
from ssppo_jax.rollout.score import micro_batches, score_rows
from ssppo_jax.runs import folder as run_folder
from ssppo_jax.runtime import Runtime
from ssppo_jax.steps import make_row_step
from ssppo_jax.types import PyTree

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Hold what an evaluation found.

    `train.select_by` chooses among `values`. `result` goes into result.json.
    """

    values: dict[str, float]
    result: dict
    of_sampling: dict[str, float] = dataclasses.field(default_factory=dict)
    wall: dict[str, float] = dataclasses.field(default_factory=dict)


class Evaluation:
    """Compare a policy's held-out responses with the initial policy's, and with those of others
    that are configured.

    Its files in the run's folder: baseline.json, reference.json, samples.jsonl.

    Raises:
      ConfigError: the file of reference outputs has others than when the run began.
    """

    def __init__(
        self,
        runtime: Runtime,
        workdir: Path,
        heldout: list[EncodedPrompt],
        oracle: Oracle,
        stopped: Callable[[], bool],
    ):
        self.config, self.workdir, self.stopped = runtime.config, workdir, stopped
        self.heldout = HeldOut(runtime, heldout)
        self.others = build_named(self.config.eval.oracles, ORACLES)
        for other in self.others.values():
            place_oracle(other, runtime.mesh)
            other.check([e.prompt for e in heldout])
        self.oracles = {"": oracle} | self.others
        self.reference = self._reference()
        self.baseline: list[list[str]] = []

    def begin(self, initial: Callable[[], PyTree]) -> None:
        """Sample the initial policy's held-out responses, once per run; they are kept on disk."""
        path = self.workdir / "baseline.json"
        kept = hosts.on_first(lambda: read_json(path) if path.is_file() else None)
        if kept is not None:
            self.baseline = kept
            return
        k = self.config.eval.final_num_samples
        sampled = self._sample(initial(), k, baseline=True, what="sample baseline")
        run_folder.append_records(
            self.workdir / "samples.jsonl", self.heldout.records(sampled, "start", 0), 0
        )
        run_folder.write_json(path, sampled.texts)
        self.baseline = sampled.texts

    def __call__(self, params: PyTree, iteration: int, last: bool) -> Evaluated | None:
        """Evaluate the policy before an iteration, or at the end, if `eval.every` says so."""
        c = self.config
        if iteration == 0:
            return self._start()
        if not (last or is_due(c.eval.every, iteration)):
            return None
        k = c.eval.final_num_samples if last else c.eval.num_samples
        sampled = self._sample(params, k, baseline=False, what="evaluate")
        found = compare_all(
            c, self.oracles, self.heldout.encoded, sampled.texts, self._opponents(iteration)
        )
        records = self.heldout.records(sampled, "final" if last else f"iter_{iteration}", iteration)
        run_folder.append_records(self.workdir / "samples.jsonl", records, iteration)
        log.info("iteration %d: held-out %s", iteration, found)
        result = found.result() | {"samples": k}
        return Evaluated(found.values(), result, sampled.metrics, sampled.wall)

    def _start(self) -> Evaluated | None:
        """Return the initial policy's rewards, for group losses and where other oracles are
        asked.
        """
        if ROWS.get(self.config.loss.name) != "group" and not self.others:
            return None
        found: dict[str, float] = {}
        for label, oracle in self.oracles.items():
            own = logged(rewards(self.config, oracle, self.heldout.encoded, self.baseline))
            found |= {prefix(label) + name: value for name, value in own.items()}
        return Evaluated(found, {}) if found else None

    def _opponents(self, iteration: int) -> dict[str, list[list[str]]]:
        """Return the responses that the policy's are compared with; the start's name is empty."""
        opponents = {"": self.baseline}
        if self.config.eval.previous:
            opponents["previous"] = hosts.on_first(lambda: self._previous(iteration))
        if self.reference is not None:
            opponents["reference"] = self.reference
        return opponents

    def _previous(self, iteration: int) -> list[list[str]]:
        """Return the held-out responses of the evaluation before, as samples.jsonl has them."""
        rows = [
            row
            for row in read_records(self.workdir / "samples.jsonl")
            if row["iteration"] < iteration
        ]
        newest = max(row["iteration"] for row in rows)
        texts: dict[str, list[str]] = {}
        for row in rows:
            if row["iteration"] == newest:
                texts.setdefault(row["prompt_id"], []).append(row["response"])
        return [texts[e.prompt.id] for e in self.heldout.encoded]

    def _reference(self) -> list[list[str]] | None:
        """Return the fixed outputs that the run compares with; they stay those it began with."""
        path = self.config.eval.reference_outputs
        if not path:
            return None
        read = hosts.on_first(lambda: read_references(path, self.heldout.encoded))
        kept = self.workdir / "reference.json"
        old = hosts.on_first(lambda: read_json(kept) if kept.is_file() else read)
        if old != read:
            raise ConfigError(
                f"eval.reference_outputs={path}: the outputs changed since the run began; put them"
                " back, or give --workdir a new folder"
            )
        run_folder.write_json(kept, read)
        return read

    def _sample(self, params: PyTree, k: int, *, baseline: bool, what: str) -> Responses:
        return self.heldout.sample(
            params, num_samples=k, baseline=baseline, what=what, stopped=self.stopped
        )


class GivenEvaluation:
    """Measure the loss and its rewards on held-out rows that came with their responses.

    Each row is measured alone, against the initial policy."""

    def __init__(self, collect: GivenCollector, heldout: list[EncodedPrompt], apply: Apply):
        self.collect, self.runtime, self.config = collect, collect.runtime, collect.config
        rows = collect.assembled(heldout, 0).batch
        self.batch = jax.tree.map(lambda x: x[np.flatnonzero(rows.weight > 0)], rows)
        self.step = jax.jit(
            make_row_step(apply, self.runtime.loss),
            out_shardings=replicated(self.runtime.mesh),
            static_argnames="slots",
        )

    def begin(self, initial: Callable[[], PyTree]) -> None:
        """Take the log-probs of the initial policy for reference: a margin says how far training
        came, whatever `train.reference` says. SFT has none.
        """
        if self.collect.rows != "response":
            logp, _ = score_rows(
                self.runtime, self.collect.score, initial(), self.batch, "the initial policy"
            )
            self.batch = self.batch._replace(old_logp=logp, ref_logp=logp, init_logp=logp)

    def __call__(self, params: PyTree, iteration: int, last: bool) -> Evaluated | None:
        """Evaluate the policy at the start, at the end and as `eval.every` says."""
        if not (iteration == 0 or last or is_due(self.config.eval.every, iteration)):
            return None
        found = intervals(self._by_row(params), seed=self.config.seed)
        said = "; ".join(f"{name} {shown(estimate)}" for name, estimate in found.items())
        log.info("iteration %d: held-out %s", iteration, said)
        values = logged(found)
        return Evaluated(values, values)

    def _by_row(self, params: PyTree) -> dict[str, np.ndarray]:
        """Return the loss and the loss's `rewards/...` of every row, [M] each."""
        found: dict[str, np.ndarray] = {}
        with bar(len(self.batch.weight), what="evaluate", unit="rows") as progress:
            for rows, part, shape in micro_batches(self.runtime, self.batch):
                placed = put_rows(self.runtime.mesh, part)
                values, real = jax.device_get(self.step(params, placed, **shape)), rows >= 0
                for name, value in values.items():
                    if name == "loss" or name.startswith("rewards/"):
                        whole = found.setdefault(name, np.zeros(len(self.batch.weight)))
                        whole[rows[real]] = value[real]
                progress.update(int(real.sum()))
        return found


def is_due(every: int, count: int) -> bool:
    """Say whether something that happens every so often (0: never) happens after `count`."""
    return bool(every) and count % every == 0
