"""Train by self-play: the algorithm box.

Each iteration samples, judges, gates, pairs and scores under pi_t, then trains, then is saved.
After a kill at any point the same command continues from the last checkpoint. It ends with the same
parameters and log as an uninterrupted run.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssppo_jax import __version__, data, schema
from ssppo_jax.config import OWN, user_files
from ssppo_jax.data import Cut
from ssppo_jax.data.completions import encode_given
from ssppo_jax.data.prepare import prepare_prompts
from ssppo_jax.distributed import hosts
from ssppo_jax.distributed.mesh import (
    host_copy,
    put_micro_batches,
    put_rows,
    put_whole,
    replicated,
    ways_of,
)
from ssppo_jax.distributed.progress import bar
from ssppo_jax.distributed.stop import StopSignal
from ssppo_jax.errors import ConfigError, GateError, Interrupted
from ssppo_jax.evaluate import evaluation_data
from ssppo_jax.losses import ROWS
from ssppo_jax.losses.core import length_stats, ratio_stats
from ssppo_jax.models.lora import join
from ssppo_jax.models.policy import Apply
from ssppo_jax.optimizer import make_rates, restarted
from ssppo_jax.rollout.collect import RECORDS, Collector
from ssppo_jax.rollout.given import GivenCollector, check_given
from ssppo_jax.rollout.judge import build_oracle, no_oracle, place_oracle
from ssppo_jax.rollout.store import Rollout, take_micro_batch, take_rows
from ssppo_jax.runs import folder as run_folder
from ssppo_jax.runs.metrics import Lagged, MetricLog, NoLog, open_log
from ssppo_jax.runs.throughput import memory_peaks, pace_of, work_of
from ssppo_jax.runtime import DROPOUT, Runtime, build_runtime
from ssppo_jax.steps import (
    Laid,
    LaidStep,
    fresh_optimizer,
    fresh_state,
    make_gradient,
    make_score_step,
    make_term_norms,
    make_train_step,
    make_update,
)
from ssppo_jax.training.evaluation import Evaluated, Evaluation, GivenEvaluation, is_due
from ssppo_jax.training.export import export_policy
from ssppo_jax.training.position import Position
from ssppo_jax.training.rollouts import Rollouts
from ssppo_jax.training.selection import Best, Selection
from ssppo_jax.types import Array, Batch, Max, Mean, Min, PyTree, TrainState
from ssppo_jax.weights.checkpoint import Checkpoints

log = logging.getLogger(__name__)

# counts of the phase judge that tell why an iteration trains nothing
WHY_NOTHING = (
    "oracle/dropped",
    "pairs/tied",
    "pairs/dropped",
    "pairs/weightless",
    "responses/tied",
    "frac_reward_zero_std",
    "group/truncated",
)


def train(
    config: ConfigDict,
    workdir: Path,
    *,
    profile: bool = False,
    on_saved: Callable[[], object] = lambda: None,
) -> dict:
    """Run (or continue) self-play in `workdir`; returns the final result, which is also in
    result.json.

    With `profile`, the second iteration of this call (the first compiles) leaves a trace in
    `workdir`/profile, for TensorBoard's profile plug-in or Perfetto. Process 0 calls `on_saved`
    when a checkpoint is on disk.

    Raises:
      ConfigError: the config cannot run here, or the folder holds a run with another config.
      GateError: the step-0 gate, the oracle's failure limit, a non-finite update, or a run without
        any gradient.
      Interrupted: SIGTERM or Ctrl-C; the run is saved and the same command continues it.
    """
    schema.check(config, jax.device_count())
    for note in schema.method_notes(config):
        log.info(note)
    for caution in schema.cautions(config):
        log.warning("WARNING: %s", caution)
    hosts.set_patience(config.distributed.timeout)
    hosts.compare(
        {
            "configuration": run_folder.digest(config),
            "train.iterations": config.train.iterations,
            "files": json.dumps(user_files(config)),
            "version": __version__,
            "workdir": str(workdir),
        }
    )
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignal())
        result = hosts.on_first(lambda: run_folder.opened(workdir, config, __version__, stack))
        if result is not None:
            log.info("%s: this run is finished; its result:", workdir)
            return result
        metrics = open_log(config, workdir)
        stack.enter_context(metrics)
        trainer = Trainer(build_runtime(config), workdir, metrics, stop)
        trainer.checkpoints.on_saved = on_saved
        stack.enter_context(trainer.checkpoints)  # the end waits for a save in the background
        if profile:
            stack.callback(_end_trace)
        return trainer.run(profile=profile)


def _end_trace() -> None:
    """End the trace of a run that stopped within the traced iteration."""
    with suppress(RuntimeError):  # there is none
        jax.profiler.stop_trace()


class Trainer:
    """Hold one run's parts; `run` reads as the algorithm does."""

    def __init__(
        self, runtime: Runtime, workdir: Path, metrics: MetricLog | NoLog, stop: StopSignal
    ):
        self.runtime, self.config = runtime, runtime.config
        self.workdir, self.metrics, self.stop = workdir, metrics, stop
        self.portions = hosts.on_first(lambda: run_folder.portions_of(workdir, self.config))
        self._say_what_is_longer()
        history = hosts.on_first(lambda: run_folder.history_of(self.config.model.source))
        self.prompts, heldout, self.account = prepare_prompts(
            self.config.data,
            runtime.tokenizer,
            seed=self.config.seed,
            history=history,
            heldout_settings=evaluation_data(self.config),
        )
        self.given = data.GIVEN.get(self.config.data.source.name, False)
        if self.given:
            self.prompts, heldout = self._completed(self.prompts), self._completed(heldout)
        self.fingerprint = self._fingerprint(heldout)
        hosts.compare({"prompts": self.fingerprint})
        hosts.on_first(
            lambda: run_folder.claim_split(workdir, self.prompts, heldout, self.fingerprint)
        )
        run_folder.write_json(workdir / "prompts.json", self.account)
        self.oracle = no_oracle() if self.given else build_oracle(self.config)
        place_oracle(self.oracle, runtime.mesh)
        self.oracle.check([e.prompt for e in self.prompts + heldout])
        if not self.given:  # their evaluation reads the collector's rows
            self.evaluation: Evaluation | GivenEvaluation = Evaluation(
                runtime, workdir, heldout, self.oracle, stop.agreed
            )
        self.checkpoints = Checkpoints(workdir / "checkpoints", keep=self.config.checkpoint.keep)
        self.rollouts = Rollouts(self.config, workdir, self.fingerprint, self.checkpoints)
        self.selection = Selection(self.config)
        self.saved: Position | None = None
        self.since, self.saving = 0.0, 0.0  # when this iteration began, and seconds of its saves
        self.losses: list[float] = []  # of this iteration's steps so far
        self.moving = 0  # steps of the run so far whose gradient was not 0
        self.moved: list[float] = []  # of the same steps, the share of the parameters that moved
        self.frozen: PyTree | None = None  # with adapters, the model's own parameters
        group = ROWS.get(self.config.loss.name) == "group"
        self.own_ratio = group and self.config.group.first_old_logp == "own"
        apply = runtime.make_apply()
        score = jax.jit(
            make_score_step(apply),
            out_shardings=replicated(runtime.mesh),  # every process sees all
            static_argnames="slots",
        )
        self.cut = data.cut_of(self.config, ways_of(runtime.mesh))
        journal = workdir / (
            "verdicts.jsonl" if hosts.is_first() else f"verdicts_{jax.process_index()}.jsonl"
        )
        make = GivenCollector if self.given else Collector
        self.collect = make(
            runtime, self.prompts, self.oracle, score, journal, portions=self.portions
        )
        if isinstance(self.collect, GivenCollector):
            check_given(self.prompts, self.config.loss.name, self.collect.rows)
            self.evaluation = GivenEvaluation(self.collect, heldout, apply)
        epochs, size = self.config.train.epochs, self.config.train.batch_size
        # steps of each iteration if no prompt is left out
        self.planned = [epochs * -(-n // size) for n in self.collect.portion_sizes()]
        self.rates = make_rates(self.config, self.planned)
        self._jit_steps(apply)

    def run(self, *, profile: bool = False) -> dict:
        state, at = self._start()
        traced = min(at.iteration + 1, self.config.train.iterations - 1) if profile else None
        self.evaluation.begin(
            lambda: self._policy(state) if at == Position() else self._load_initial()
        )
        initial = self._initial_policy(state, at)
        self.since = time.perf_counter()
        while True:
            boundary, best = self.metrics.offset(), self.selection.best
            last = at.iteration == self.config.train.iterations
            self._check_something_was_trained(at, last)
            try:
                found = self._evaluate(self._policy(state), at, last)
                if found is not None and self._select(state, found, at, boundary):
                    last = True  # out of patience; sampled as often as any other end
                    self._check_something_was_trained(at, last)
                    found = self._evaluate(self._policy(state), at, last)
                if found is not None and last:
                    return self._finish(state, found.result, at)
                if found is not None:  # a policy that was not evaluated may be the best
                    state = self._carry(state, at)
                policy = self._policy(state)
                if at.iteration == traced and hosts.is_first():
                    jax.profiler.start_trace(self.workdir / "profile")
                rollout = self._rollout(policy, initial, at)
            except Interrupted:
                self.selection.best = best  # this boundary is evaluated again
                self._save(state, at, boundary)
                raise
            state = self._timed_train(state, rollout, at)
            if at.iteration == traced and hosts.is_first():
                jax.profiler.stop_trace()
            at = Position(at.iteration + 1)
            stop = self.stop.agreed()  # asked once: a stop without a save would lose the iteration
            if stop or self._is_checkpoint(at):
                self._save(state, at, self.metrics.offset())
            if stop:
                raise Interrupted

    # ---- start -----------------------------------------------------------------------------------

    def _say_what_is_longer(self) -> None:
        """Say what raising train.iterations means for rates and prompts."""
        c, first = self.config, self.portions
        if c.train.iterations == first:
            return
        log.info("the run began with %d iterations and has %d now", first, c.train.iterations)
        if not c.train.prompts_per_iteration:
            log.info("its prompts stay cut into %d parts; later passes are shuffled anew", first)
        if c.optimizer.scope == "run":
            log.info(
                "learning rates from here on are those of a run of %d iterations"
                " (optimizer.scope=run)",
                c.train.iterations,
            )

    def _completed(self, encoded: list[data.EncodedPrompt]) -> list[data.EncodedPrompt]:
        """Encode the responses that came with the prompts; list those that are too long."""
        c = self.config
        found = encode_given(
            encoded,
            self.runtime.tokenizer,
            self.runtime.eos,
            max_new_tokens=c.sampling.max_new_tokens,
            template=c.data.template,
            date=c.data.date,
        )
        self.account.setdefault("responses_too_long", []).extend(map(list, found.too_long))
        return found.encoded

    def _fingerprint(self, heldout: list[data.EncodedPrompt]) -> str:
        """Digest everything that decides which ids are trained on when, and evaluated on."""
        c = self.config
        return data.fingerprint(
            [*self.prompts, *heldout],
            train=len(self.prompts),
            seed=c.seed,
            iterations=self.portions,
            prompts_per_iteration=c.train.prompts_per_iteration,
            heldout=c.data.heldout,
            max_prompt_length=c.data.max_prompt_length,
        )

    def _jit_steps(self, apply: Apply) -> None:
        loss, lora = self.runtime.loss, self.config.lora
        dropout = self.runtime.key(DROPOUT) if lora.rank and lora.dropout else None
        # SFT on given responses is not scored, so there is no ratio
        scored = not (self.given and self.collect.rows == "response")
        parts = (apply, loss, ratio_stats if scored else length_stats)
        if self.cut.by_length:
            self.step: Callable = LaidStep(
                make_gradient(*parts, dropout_key=dropout),
                make_update(self.runtime.optimizer),
                most=self.config.train.batch_size,
                params=self.runtime.abstract_state.params,
            )
            self.term_norms = jax.jit(make_term_norms(apply, loss), static_argnames="slots")
            return
        step = make_train_step(*parts, self.runtime.optimizer, dropout_key=dropout)
        self.step = jax.jit(step, donate_argnums=0)
        norms = make_term_norms(apply, loss)
        self.term_norms = jax.jit(
            lambda params, batch, *more: norms(params, jax.tree.map(lambda x: x[0], batch), *more)
        )

    def _start(self) -> tuple[TrainState, Position]:
        """Restore the newest valid checkpoint of this run, or load the initial policy."""
        runtime = self.runtime
        step = self.checkpoints.latest()
        if hosts.is_first():
            self.checkpoints.clear()
        if step is None:
            self.metrics.truncate(0)
            self.frozen, trained = runtime.parted(runtime.load_params())
            return fresh_state(runtime.mesh, trained, self.runtime.optimizer), Position()
        if self.config.lora.rank:
            self.frozen, _ = runtime.parted(runtime.load_params())
        state, meta = self._restore(step)
        if meta["fingerprint"] != self.fingerprint:
            raise ConfigError(
                f"{self.workdir}: the prompts or their token ids changed since the checkpoint; put"
                " them back, or give --workdir a new folder"
            )
        at = self.saved = Position(**meta["position"])
        self.moving = meta.get("moving_steps", int(state.step))  # not in older checkpoints
        self.selection.best = Best(**meta["best"]) if meta.get("best") else None
        self.metrics.truncate(meta["metrics_offset"])
        if at.iteration == self.config.train.iterations:
            log.info("resuming at the last evaluation")
        else:
            steps = at.step_in_iteration
            log.info("resuming at iteration %d, after %d of its steps", at.iteration + 1, steps)
        return state, at

    def _restore(self, step: int) -> tuple[TrainState, dict]:
        """Return the state of one checkpoint, and its meta."""
        return self.checkpoints.restore(step, self.runtime.abstract_state)

    def _policy(self, state: TrainState) -> PyTree:
        """Return all parameters of pi_theta, frozen ones included."""
        return join(self.frozen, state.params)

    def _initial_policy(self, state: TrainState, at: Position) -> Callable[[], PyTree] | None:
        """Return a loader of the initial policy, for KL and `reference: initial`; None when it is
        off.
        """
        how = self.config.train.reference_storage
        if how == "off":
            return None
        if how == "disk" or self.frozen is not None:  # of adapters nothing is read
            return self._load_initial
        fresh = at == Position() and how == "host"
        params = self._policy(state) if fresh else self._load_initial()
        return host_copy(params) if how == "host" else lambda: params

    def _load_initial(self) -> PyTree:
        """Load the initial policy.

        With adapters it is the frozen model with fresh adapters, so nothing is read.
        """
        if self.frozen is None:
            return self.runtime.load_params()
        return join(self.frozen, self.runtime.fresh_adapters())

    # ---- phases ----------------------------------------------------------------------------------

    def _evaluate(self, params: PyTree, at: Position, last: bool) -> Evaluated | None:
        """Evaluate the policy at a boundary where that is due, and log it.

        The start is logged only: there is nothing to compare it with.
        """
        if at.step_in_iteration:
            return None
        found = self.evaluation(params, at.iteration, last)
        if found is None:
            return None
        self._log("evaluate", found.values | found.of_sampling, found.wall, at)
        if self.given and self.selection.name:  # its numbers are those of every later evaluation
            self.selection.read(found)
        return found if at.iteration else None

    def _select(self, state: TrainState, found: Evaluated, at: Position, boundary: int) -> bool:
        """Note the best evaluated policy (`train.select_by`); say if the run should end.

        A state that a later iteration may start from, or that another one will replace, is saved
        here with the best before it, because a resume evaluates this boundary again.
        """
        c = self.config.train
        if not self.selection.name:
            return False
        kept = self.selection.is_better(found) or c.carry == "best"
        if kept and at.iteration < c.iterations:
            self._save(state, at, boundary)
        return self.selection.note(found, at.iteration, int(state.step))

    def _carry(self, state: TrainState, at: Position) -> TrainState:
        """Return the state that the iteration starts from (`train.carry`).

        The best policy comes with its own optimizer state; the count of steps goes on. The state
        that it replaces is on disk (`_select`) and leaves the devices first.
        """
        best = self.selection.carried(at.iteration)
        if best is None:
            return state
        log.info("iteration %d starts from that of iteration %d", at.iteration + 1, best.iteration)
        self.checkpoints.wait()  # the best may be the one that is being written
        for leaf in jax.tree.leaves((state.params, state.opt_state)):
            leaf.delete()
        return self._restore(best.step)[0]._replace(step=state.step)

    def _rollout(
        self, params: PyTree, initial: Callable[[], PyTree] | None, at: Position
    ) -> Rollout:
        """Return this iteration's rollout, and log it where the iteration begins."""
        rollout = self.rollouts(
            lambda iteration: self.collect(params, initial, iteration, stopped=self.stop.agreed), at
        )
        if at.step_in_iteration == 0:
            for phase, values in rollout.metrics.items():
                self._log(phase, values, rollout.wall[phase], at)
            run_folder.append_records(
                self.workdir / RECORDS[self.collect.rows], rollout.records, at.iteration
            )
        return rollout

    def _timed_train(self, state: TrainState, rollout: Rollout, at: Position) -> TrainState:
        """Run `_train` and log its pace and the peak memory so far."""
        c, start = self.config, time.perf_counter()
        rows = np.flatnonzero(rollout.batch.weight > 0)  # a row of weight 0 takes no place
        steps = [rows[i] for i in data.epoch_batches(c, at.iteration, len(rows))]
        adapters = self.frozen is not None
        work = work_of(self.runtime.arch, rollout.batch, steps, self.cut, adapters=adapters)
        moved_before = self.moving
        state = self._train(state, rollout, steps, at)
        whole = at.step_in_iteration == 0  # a resumed part of an iteration has no pace of its own
        if whole and self.moving == moved_before:
            self._warn_of_nothing(rollout, len(steps), at)
        elif rollout.metrics.get("judge", {}).get("pairs/tied") == 1.0:
            log.warning(
                "WARNING: the oracle scored all responses of each prompt alike, so no win rate says"
                " which is better"
            )
        pace = pace_of(work, time.perf_counter() - start) if whole and steps else {}
        values = {
            "steps/planned": float(self.planned[at.iteration]),
            "steps/taken": float(len(steps)),
            "steps/moving": float(self.moving),
        }
        values |= {"padding_share": work.padding_share} if steps else {}
        now = time.perf_counter()
        spent = {"iteration_seconds": now - self.since, "checkpoint_seconds": self.saving}
        self.since, self.saving = now, 0.0
        self._log("iteration", values, pace | spent | memory_peaks(), at)
        self._say(rollout, pace, at)
        return state

    def _say(self, rollout: Rollout, pace: dict[str, float], at: Position) -> None:
        """Put an iteration's loss, reward and pace on the console in one line."""
        said = [f"iteration {at.iteration + 1}/{self.config.train.iterations}"]
        if self.losses:
            said.append(f"loss {np.mean(self.losses):.4g}")
        if "reward/mean" in rollout.metrics["judge"]:
            said.append(f"reward {rollout.metrics['judge']['reward/mean']:.3f}")
        if self.moved and self.runtime.param_dtype != np.float32:
            said.append(f"a step moved {np.mean(self.moved):.2%} of the parameters")
        if pace:
            said.append(f"trained {pace['train_tokens_per_second']:,.0f} tokens/s")
            said.append(f"{pace['train_seconds']:.0f} s")
        log.info("%s: %s", said[0], ", ".join(said[1:]) or "no rows to train on")

    def _warn_of_nothing(self, rollout: Rollout, steps: int, at: Position) -> None:
        """Say that an iteration left the policy as it was, with the counts that tell why."""
        judged = rollout.metrics["judge"]
        counts = [f"{name}={judged[name]:g}" for name in WHY_NOTHING if judged.get(name)]
        log.warning(
            "iteration %d/%d trained nothing: %d rows, %d steps, no gradient (%s)",
            at.iteration + 1,
            self.config.train.iterations,
            len(rollout.batch.weight),
            steps,
            ", ".join(counts) or "no row was left out; the loss itself has no gradient",
        )

    def _check_something_was_trained(self, at: Position, last: bool) -> None:
        """Refuse to evaluate and export the initial policy as a run's result."""
        if not last or self.moving:
            return
        raise GateError(
            f"nothing was trained in {at.iteration} iterations: no step had a gradient, so the"
            " policy is the initial one and is not exported. The log names what was left out"
            f" ({', '.join(WHY_NOTHING)}). If all responses score the same, raise"
            " sampling.num_samples or sampling.temperature, or choose prompts or an oracle that"
            " tell them apart. If all are cut off, raise sampling.max_new_tokens"
        )

    def _train(
        self, state: TrainState, rollout: Rollout, batches: list[np.ndarray], at: Position
    ) -> TrainState:
        """Take one optimizer step per batch of this iteration; save on the way when asked or told
        to stop.
        """
        c, first = self.config, at.step_in_iteration
        own = not (c.train.rollout_lag and at.iteration)  # this very policy sampled the rollout
        if c.optimizer.scope == "iteration" and first == 0:
            fresh = fresh_optimizer(self.runtime.mesh, state.params, self.runtime.optimizer)
            state = state._replace(opt_state=restarted(state.opt_state, fresh))
        lagged, self.losses, self.moved = Lagged(), [], []
        before = int(state.step) - first
        rates = self.rates(at.iteration, len(batches))
        what = f"train {at.iteration + 1}/{c.train.iterations}"
        with (
            bar(len(batches) - first, what=what, unit="steps") as progress,
            jax.transfer_guard("disallow"),
        ):
            for i in range(first, len(batches)):
                batch = self._placed(rollout.batch, batches[i])
                on_policy = put_whole(self.runtime.mesh, i == 0 and own and self.own_ratio)
                extra = self._term_norms(state.params, batch, on_policy, i)
                extra["learning_rate"] = Mean(np.float32(rates[i]), np.float32(1))
                rate = put_whole(self.runtime.mesh, np.float32(rates[i]))
                state, metrics = self.step(state, batch, self.frozen, rate, on_policy)
                # pi_t itself: what the scoring and the training program differ by
                if i == 0 and own and "ratio/gap" in metrics:
                    extra["ratio/first_step_gap"] = metrics["ratio/gap"]
                self._log_step(lagged.push(before + i + 1, metrics | extra), at)
                if self.losses:
                    progress.set_postfix_str(f"loss {self.losses[-1]:.4g}", refresh=False)
                progress.update()
                inside = i + 1 < len(batches)
                stop = self.stop.voted()
                if inside and (stop or is_due(c.checkpoint.every_steps, i + 1)):
                    self._log_step(lagged.flush(), at)
                    self._save(state, Position(at.iteration, i + 1), self.metrics.offset())
                    if stop:
                        raise Interrupted
        self._log_step(lagged.flush(), at)
        return state

    def _placed(self, batch: Batch, rows: np.ndarray) -> Batch | list[Laid]:
        """Put a step's rows onto the mesh, cut by length where that is configured."""
        if self.cut.by_length:
            return lay(self.runtime.mesh, batch, rows, self.cut)
        c = self.config
        whole = take_rows(batch, rows, c.train.batch_size, c.data.prompt_buckets)
        return put_micro_batches(self.runtime.mesh, whole, c.train.micro_batches)

    def _term_norms(
        self, params: PyTree, batch: Batch | list[Laid], on_policy: Array, index: int
    ) -> dict[str, Mean | Max | Min]:
        """Return the gradient norms of the loss terms on the iteration's first micro-batch."""
        if index or not self.config.train.term_norms:
            return {}
        if isinstance(batch, list):
            return self.term_norms(params, batch[0].batch, self.frozen, on_policy, **batch[0].shape)
        return self.term_norms(params, batch, self.frozen, on_policy)

    # ---- bookkeeping -----------------------------------------------------------------------------

    def _log(self, phase: str, values: dict, wall: dict, at: Position) -> None:
        self.metrics.write(
            step=sum(self.planned[: at.iteration]),  # of phases that take none
            iteration=at.iteration,
            phase=phase,
            values=values,
            wall=wall,
        )

    def _remedy(self) -> str:
        """Return what helps where a step was not finite."""
        beta = " or raise loss.beta" if "beta" in self.config.loss else ""
        name = self.config.loss.name
        own = f". In {name}, look at divisions, logs and exponentials" if OWN.match(name) else ""
        return f"Lower optimizer.learning_rate{beta}{own}"

    def _log_step(self, ready: tuple[int, dict] | None, at: Position) -> None:
        """Write a finished step's metrics; raise GateError if the step is not finite, before any
        save.
        """
        if ready is None:
            return
        step, values = ready
        if values.pop("finite") != 1.0:
            raise GateError(
                f"step {step}: loss or gradient is not finite (loss {values['loss']}, gradient norm"
                f" {values['grad_norm']}); that state is not saved. {self._remedy()}"
            )
        self.losses.append(values["loss"])
        self.moving += values["grad_norm"] > 0
        self.moved.append(values["update_share"])
        self.metrics.write(step=step, iteration=at.iteration, phase="train", values=values)

    def _is_checkpoint(self, at: Position) -> bool:
        c = self.config.checkpoint
        if at.iteration == self.config.train.iterations:
            return c.final
        return is_due(c.every, at.iteration)

    def _save(self, state: TrainState, at: Position, metrics_offset: int) -> None:
        """Save a checkpoint at `at`, unless the newest one is there already or nothing has been
        trained.
        """
        if at in (self.saved, Position()):
            return
        meta = {
            "position": dataclasses.asdict(at),
            "metrics_offset": metrics_offset,
            "fingerprint": self.fingerprint,
            "version": __version__,
            "moving_steps": self.moving,
            "best": dataclasses.asdict(self.selection.best) if self.selection.best else None,
        }
        if self.config.train.select_by:
            self.checkpoints.wait()  # one that is under way may name another best
        if hosts.is_first():
            newest = self.checkpoints.metas()[: self.config.checkpoint.keep]
            self.checkpoints.protected = self.selection.steps(newest)
        start, background = time.perf_counter(), self.config.checkpoint.async_save
        step = int(jax.device_get(state.step))  # asked for: steps of training forbid other reads
        with jax.transfer_guard("allow"):  # processes that agree send each other numbers
            # `_log_step` has checked that every step is finite
            self.checkpoints.save(step, state, meta, finite=True, background=background)
        self.saved = at
        self.saving += time.perf_counter() - start
        self.rollouts.drop(at)

    def _finish(self, state: TrainState, result: dict, at: Position) -> dict:
        """Export the policy, and the best one if one was selected, and write the result.

        The result comes last: a start without one repeats the whole export.
        """
        self.checkpoints.wait()
        if self.saved:
            self.rollouts.drop(self.saved)
        best, export = self.selection.best, self.config.checkpoint.export
        if export:
            export_policy(self.runtime, self._policy(state), self.workdir, result, self.account)
        if best is not None:
            result |= {"best_iteration": best.iteration, "best_value": best.value}
            if export:
                own = state if best.iteration == at.iteration else self._restore(best.step)[0]
                export_policy(
                    self.runtime,
                    self._policy(own),
                    self.workdir,
                    best.result,
                    self.account,
                    which="_best",
                )
        run_folder.write_json(self.workdir / "result.json", result)
        return result


def lay(mesh: Mesh, batch: Batch, rows: np.ndarray, cut: Cut) -> list[Laid]:
    """Put rows of a rollout onto the mesh as micro-batches of like length."""
    own, laid = np.asarray(batch.mask).sum(2).astype(int), []
    for place, micro in enumerate(cut(np.asarray(batch.prompt_length), own, rows)):
        part, packing = take_micro_batch(batch, micro, cut)
        laid.append(
            Laid(
                put_rows(mesh, part),
                put_whole(mesh, np.int32(place)),
                micro.completion,
                None if packing is None else put_rows(mesh, packing),
            )
        )
    return laid


def run(config: ConfigDict | str, workdir: str | Path, *, profile: bool = False) -> dict:
    """Train a config, or one by its name, in a folder, which is made: `ssppo_jax.train`.

    Raises:
      ConfigError, DataError, GateError: what `train` raises; a folder in which nothing was computed
        is removed again.
    """
    made = schema.load(config, {}, jax.device_count()) if isinstance(config, str) else config
    folder = Path(workdir)
    with run_folder.no_trace_of_failure(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return train(made, folder, profile=profile)
