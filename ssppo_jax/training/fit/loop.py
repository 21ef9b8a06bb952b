"""Fit a reward model or a PairRM on preference pairs: one loop for every head."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssppo_jax import __version__, data, schema
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.data.prepare import load_prompts
from ssppo_jax.distributed import hosts
from ssppo_jax.distributed.mesh import (
    AXES,
    make_mesh,
    mesh_shape,
    put_micro_batches,
    put_rows,
    put_whole,
    replicated,
)
from ssppo_jax.distributed.progress import bar
from ssppo_jax.distributed.stop import StopSignal
from ssppo_jax.errors import ConfigError, GateError, Interrupted
from ssppo_jax.evaluate import intervals, logged, shown
from ssppo_jax.losses.core import length_stats
from ssppo_jax.optimizer import make_rates, make_run_optimizer
from ssppo_jax.rollout.store import take_rows
from ssppo_jax.runs import folder as run_folder
from ssppo_jax.runs.metrics import Lagged, MetricLog, NoLog, open_log
from ssppo_jax.runtime import ROUNDING
from ssppo_jax.steps import make_row_step, make_train_step
from ssppo_jax.training.evaluation import is_due
from ssppo_jax.training.fit.head import Head
from ssppo_jax.training.fit.pairwise import pairwise
from ssppo_jax.training.fit.reward import reward
from ssppo_jax.training.fit.temperature import calibrate
from ssppo_jax.types import Batch, PyTree, TrainState
from ssppo_jax.weights.checkpoint import Checkpoints

log = logging.getLogger(__name__)

HEADS = {"reward": reward, "pairwise": pairwise}


def fit(config: ConfigDict, workdir: Path) -> dict:
    """Fit the configured head (`fit.head`) in `workdir`, or continue; return the result.

    The result is the held-out loss, accuracy and margin with 95% intervals over pairs, and for a
    reward model the `oracle.reward_temperature` of least held-out loss. It is also in result.json.
    The model is exported to a folder that is called as the oracle that loads it:
    `workdir`/reward_model or `workdir`/pairrm.

    Read from the config: model, data, optimizer, mesh, train.epochs, train.batch_size,
    train.micro_batches, sampling.max_new_tokens (tokens of a response), oracle.reward_temperature
    (for scores), checkpoint.every_steps. There are no iterations: an epoch is one.

    Raises:
      ConfigError: the config cannot run here, or the data has no responses.
      GateError: a step is not finite.
      Interrupted: SIGTERM or Ctrl-C; the fit is saved and the same command continues it.
    """
    config = config.copy_and_resolve_references()
    config.train.iterations, config.train.prompts_per_iteration = 1, 0
    schema.check(config, jax.device_count())
    source = config.data.source.name
    if not data.GIVEN.get(source, False):
        raise ConfigError(
            f"data.source.name={source} gives prompts alone, and fit learns from responses; give"
            " pairs: --config.data.source.name=answered --config.data.source.path=pairs.jsonl"
        )
    hosts.set_patience(config.distributed.timeout)
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignal())
        result = hosts.on_first(lambda: run_folder.opened(workdir, config, __version__, stack))
        if result is not None:
            log.info("%s: this fit is finished; its result:", workdir)
            return result
        metrics = open_log(config, workdir)
        stack.enter_context(metrics)
        mesh = make_mesh(mesh_shape({axis: config.mesh[axis] for axis in AXES}, jax.device_count()))
        head = HEADS[config.fit.head](config, mesh)
        return Fit(config, head, mesh, workdir, metrics, stop).run()


class Fit:
    """Hold one fit's parts; `run` reads as the loop does."""

    def __init__(
        self,
        config: ConfigDict,
        head: Head,
        mesh: Mesh,
        workdir: Path,
        metrics: MetricLog | NoLog,
        stop: StopSignal,
    ):
        self.config, self.head, self.mesh, self.workdir = config, head, mesh, workdir
        self.metrics, self.stop = metrics, stop
        self.train, self.heldout = self._load_pairs()
        self.steps = data.epoch_batches(config, 0, len(self.train.weight))
        self.rates = make_rates(config, [len(self.steps)])(0, len(self.steps))
        self.checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
        rounding = jax.random.fold_in(jax.random.key(config.seed), ROUNDING)
        self.optimizer = make_run_optimizer(config, rounding)
        step = make_train_step(head.apply, head.loss, length_stats, self.optimizer)
        self.step = jax.jit(step, donate_argnums=0)
        measure = make_row_step(head.apply, head.loss)
        self.measure = jax.jit(measure, out_shardings=replicated(mesh))

    def run(self) -> dict:
        state, first = self._start()
        per_epoch = len(self.steps) // self.config.train.epochs
        if first % per_epoch == 0:  # a save at an epoch's end is older than its evaluation
            self._evaluate(state, first)
        lagged = Lagged()
        with bar(len(self.steps) - first, what="fit", unit="steps") as progress:
            for i in range(first, len(self.steps)):
                rate = put_whole(self.mesh, np.float32(self.rates[i]))
                state, values = self.step(state, self._batch(self.steps[i]), None, rate, False)
                self._log(lagged.push(i + 1, values))
                progress.update()
                stop, last = self.stop.voted(), i + 1 == len(self.steps)
                if not last and (stop or is_due(self.config.checkpoint.every_steps, i + 1)):
                    self._log(lagged.flush())
                    self._save(state, i + 1)
                    if stop:
                        raise Interrupted
                if (i + 1) % per_epoch == 0 and not last:
                    self._log(lagged.flush())
                    self._evaluate(state, i + 1)
        self._log(lagged.flush())
        result = self._evaluate(state, len(self.steps))
        self._advise(result)
        self.head.export(state.params, self.workdir / self.head.oracle)
        run_folder.write_json(self.workdir / "result.json", result)
        return result

    def _load_pairs(self) -> tuple[Batch, Batch]:
        """Return training and held-out pairs; say what was left out, in prompts.json too."""
        c = self.config
        prompts = load_prompts(c.data.source)
        split = data.split_prompts(prompts, heldout=c.data.heldout, seed=c.seed)
        (train, long), (heldout, long_heldout) = map(self.head.encode, (split.train, split.heldout))
        if not train or not heldout:
            raise ConfigError(
                f"{len(train)} rows to fit on and {len(heldout)} held out are short enough; raise"
                " data.max_prompt_length or sampling.max_new_tokens"
            )
        given = train[0].prompt.given
        if given is None or len(given.texts) < 2:
            raise ConfigError(
                "fit learns from pairs, and the data has one response to each prompt; give rows"
                ' with "chosen" and "rejected"'
            )
        rows, rows_heldout = self._rows(train, "to fit on"), self._rows(heldout, "held out")
        self.fingerprint = data.fingerprint([*train, *heldout], seed=c.seed, head=c.fit.head)
        hosts.compare({"pairs": self.fingerprint})
        hosts.on_first(
            lambda: run_folder.claim_split(self.workdir, train, heldout, self.fingerprint)
        )
        account = {
            "train_pairs": len(rows.weight),
            "heldout_pairs": len(rows_heldout.weight),
            "left_out": [*map(list, long), *map(list, long_heldout)],
            "copies_of_heldout": list(split.duplicates),
        }
        run_folder.write_json(self.workdir / "prompts.json", account)
        return rows, rows_heldout

    def _rows(self, encoded: Sequence[EncodedPrompt], what: str) -> Batch:
        rows = self.head.rows(encoded)
        if not len(rows.weight):
            raise ConfigError(
                f"all {len(encoded)} rows {what} are ties, so no response is preferred"
            )
        log.info("%d pairs of %d rows %s", len(rows.weight), len(encoded), what)
        return rows

    def _start(self) -> tuple[TrainState, int]:
        """Restore the newest checkpoint, or load the model."""
        newest = self.checkpoints.latest()
        if hosts.is_first():
            self.checkpoints.clear()
        opt_state = self.head.place(jax.eval_shape(self.optimizer.init, self.head.abstract))
        if newest is None:
            self.metrics.truncate(0)
            params, placed = self.head.load(), jax.tree.map(lambda s: s.sharding, opt_state)
            opt_state = jax.jit(self.optimizer.init, out_shardings=placed)(params)
            return TrainState(params, opt_state, put_whole(self.mesh, np.int32(0))), 0
        count: Any = jax.ShapeDtypeStruct((), np.int32, sharding=replicated(self.mesh))
        like = TrainState(self.head.abstract, opt_state, count)
        state, meta = self.checkpoints.restore(newest, like)
        if meta["fingerprint"] != self.fingerprint:
            raise ConfigError(
                f"{self.workdir}: the pairs changed since the checkpoint; put them back, or give"
                " --workdir a new folder"
            )
        self.metrics.truncate(meta["metrics_offset"])
        log.info("resuming at step %d", newest)
        return state, newest

    def _batch(self, rows: np.ndarray) -> Batch:
        """Put a step's rows onto the mesh as [M,B/M,...]."""
        c = self.config
        batch = take_rows(self.train, rows, c.train.batch_size, c.data.prompt_buckets)
        return put_micro_batches(self.mesh, batch, c.train.micro_batches)

    def _evaluate(self, state: TrainState, step: int) -> dict:
        """Measure the held-out pairs and log the means with their intervals."""
        measured = self._measured(state.params)
        found = intervals(measured, seed=self.config.seed)
        values = logged(found)
        if self.head.tempered:
            temperature = calibrate(measured["rewards/margins"], np.asarray(self.heldout.p_win))
            if temperature is not None:
                values["reward_temperature"] = temperature
        self.metrics.write(step=step, iteration=0, phase="evaluate", values=values)
        said = "; ".join(f"{name} {shown(estimate)}" for name, estimate in found.items())
        log.info("step %d: held-out %s", step, said)
        return values

    def _advise(self, result: dict) -> None:
        """Say at which temperature the reward's preferences are best, or that there is none."""
        if not self.head.tempered:
            return
        if "reward_temperature" in result:
            log.info(
                "the held-out loss is least at --config.oracle.reward_temperature=%.3g",
                result["reward_temperature"],
            )
        else:
            log.warning(
                "the reward orders the held-out pairs no better than a coin; a policy would learn"
                " nothing from it. Give more pairs, epochs or a higher optimizer.learning_rate"
            )

    def _measured(self, params: PyTree) -> dict[str, np.ndarray]:
        """Return the loss and the `rewards/...` of every held-out pair, [M] each."""
        c, batch, found = self.config, self.heldout, dict[str, np.ndarray]()
        size = c.train.batch_size // c.train.micro_batches
        with bar(len(batch.weight), what="evaluate", unit="pairs") as progress:
            for start in range(0, len(batch.weight), size):
                rows = np.arange(start, min(start + size, len(batch.weight)))
                part = put_rows(self.mesh, take_rows(batch, rows, size, c.data.prompt_buckets))
                for name, value in jax.device_get(self.measure(params, part)).items():
                    if name == "loss" or name.startswith("rewards/"):
                        whole = found.setdefault(name, np.zeros(len(batch.weight)))
                        whole[rows] = value[: len(rows)]
                progress.update(len(rows))
        return found

    def _log(self, ready: tuple[int, dict] | None) -> None:
        if ready is None:
            return
        step, values = ready
        if values.pop("finite") != 1.0:
            raise GateError(
                f"step {step}: loss or gradient is not finite (loss {values['loss']}); that state"
                " is not saved. Lower optimizer.learning_rate"
            )
        self.metrics.write(step=step, iteration=0, phase="train", values=values)

    def _save(self, state: TrainState, step: int) -> None:
        meta = {
            "position": {"iteration": 0, "step_in_iteration": step},
            "metrics_offset": self.metrics.offset(),
            "fingerprint": self.fingerprint,
            "version": __version__,
        }
        self.checkpoints.save(step, state, meta, finite=True)
