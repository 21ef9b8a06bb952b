"""What a run does between iterations: where it starts from, what it saves, and when it ends. The
model, sampling and training are left out."""

from types import SimpleNamespace

import numpy as np
import pytest
from small_runs import configure

from ssppo_jax.errors import ConfigError, GateError, Interrupted
from ssppo_jax.training.evaluation import Evaluated, is_due
from ssppo_jax.training.position import Position
from ssppo_jax.training.selection import Selection
from ssppo_jax.training.train import Trainer


class Bare(Trainer):
    """A trainer whose state is a count of iterations; `rates` are its evaluations' win rates."""

    def __init__(self, rates=(), signals=(), moving=1, **settings):
        self.config = configure(**settings)
        self.selection = Selection(self.config)
        self.rates, self.signals = dict(enumerate(rates)), iter(signals)
        self.moving, self.saved, self.given = moving, None, False
        self.saves, self.starts = [], []
        self.metrics = SimpleNamespace(offset=lambda: 0)
        self.evaluation = SimpleNamespace(begin=lambda load: None)
        self.stop = SimpleNamespace(agreed=lambda: next(self.signals, False))
        self.checkpoints = SimpleNamespace(wait=lambda: None)

    def _start(self):
        return State(0), Position()

    def _policy(self, state):
        return None

    def _initial_policy(self, state, at):
        return None

    def _evaluate(self, params, at, last):
        c = self.config
        if not at.iteration or not (last or is_due(c.eval.every, at.iteration)):
            return None
        return Evaluated({"win_rate": self.rates.get(at.iteration, 0.5)}, {"win_rate": 0.5})

    def _restore(self, step):
        return State(step), {}

    def _rollout(self, params, initial, at):
        return None

    def _timed_train(self, state, rollout, at):
        self.starts.append(int(state.step))
        return State(at.iteration + 1)

    def _save(self, state, at, offset):
        self.saves.append(at.iteration)

    def _finish(self, state, result, at):
        return result | {"iteration": at.iteration}


class State(SimpleNamespace):
    """A state of training whose step says which iteration's policy it is."""

    def __init__(self, step):
        super().__init__(step=step, params=(), opt_state=())

    def _replace(self, step):
        return self  # so that `starts` tells the policy


def test_a_policy_that_was_not_evaluated_is_not_thrown_away():
    """With eval.every=2 the third iteration's policy is nobody's loser: the fourth goes on."""
    settings = {"train__select_by": "eval/win_rate", "train__carry": "best", "eval__every": 2}
    run = Bare(rates=(0, 0, 0.6, 0, 0.4, 0, 0.5), train__iterations=6, **settings)
    run.run()
    assert run.starts == [0, 1, 2, 3, 2, 5]  # the fifth starts from the best, of the second


def test_a_stop_that_comes_after_an_iteration_is_saved_whenever_it_is_seen():
    for signals in ([True], [False, True]):
        run = Bare(signals=signals, train__iterations=5, checkpoint__every=2)
        with pytest.raises(Interrupted):
            run.run()
        assert run.saves[-1] == len(signals)
    run = Bare(train__iterations=5, checkpoint__every=2, checkpoint__final="false")
    run.run()
    assert run.saves == [2, 4]


def test_patience_does_not_end_a_run_that_trained_nothing_with_a_result():
    settings = {"train__select_by": "eval/win_rate", "train__patience": 2, "train__iterations": 9}
    assert Bare(**settings).run()["iteration"] == 3
    with pytest.raises(GateError, match="nothing was trained in 3 iterations"):
        Bare(moving=0, **settings).run()


def test_of_losses_the_lowest_is_the_best():
    run = Bare(train__select_by="eval/loss", train__patience=2)
    for n, loss in enumerate([2.0, 1.5, 1.7, 1.0], 1):
        assert not run.selection.note(Evaluated({"loss": loss}, {}), n, n)
    assert run.selection.best.iteration == 4


def test_a_number_that_evaluations_lack_is_told_with_those_they_have():
    selection = Bare(train__select_by="eval/win_rate").selection
    with pytest.raises(ConfigError, match=r"evaluations of this run give eval/accuracy$"):
        selection.read(Evaluated({"loss": 1.0, "accuracy": 0.5, "accuracy_low": 0.4}, {}))


@pytest.mark.parametrize("count", ["responses/tied", "group/truncated"])
def test_an_iteration_that_trained_nothing_names_what_was_left_out(count, caplog):
    batch = SimpleNamespace(weight=np.zeros(8))
    rollout = SimpleNamespace(metrics={"judge": {count: 8.0}}, batch=batch)
    Bare()._warn_of_nothing(rollout, 0, Position())
    assert f"no gradient ({count}=8)" in caplog.text
