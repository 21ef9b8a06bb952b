"""Choose the best evaluated policy of a run, and say when waiting for a better one should end."""

from __future__ import annotations

import dataclasses
import logging

from ml_collections import ConfigDict

from ssppo_jax.errors import ConfigError
from ssppo_jax.schema.between import evaluated
from ssppo_jax.training.evaluation import Evaluated

log = logging.getLogger(__name__)

LOWER = ("loss",)  # of these numbers the lowest is the best


@dataclasses.dataclass(frozen=True)
class Best:
    """Hold the best evaluated policy so far (`train.select_by`); its checkpoint is kept."""

    iteration: int
    step: int  # of its checkpoint
    value: float
    result: dict  # of its evaluation
    waited: int = 0  # evaluations since


class Selection:
    """Hold the best policy by `train.select_by`, and what `train.patience` and `train.carry` make
    of it."""

    def __init__(self, config: ConfigDict):
        self.config = config.train
        self.name = evaluated(config.train.select_by)
        self.best: Best | None = None

    def read(self, found: Evaluated) -> float:
        """Return the number of an evaluation that `train.select_by` names.

        Raises:
          ConfigError: the evaluation gave no number of that name.
        """
        if self.name not in found.values:
            names = [key for key in found.values if f"{key}_low" in found.values]
            raise ConfigError(
                f"train.select_by=eval/{self.name}: evaluations of this run give "
                + ", ".join(f"eval/{key}" for key in names)
            )
        return found.values[self.name]

    def is_better(self, found: Evaluated) -> bool:
        """Return whether an evaluation is the best so far."""
        value = self.read(found)
        if self.best is None:
            return True
        return value < self.best.value if self.name in LOWER else value > self.best.value

    def note(self, found: Evaluated, iteration: int, step: int) -> bool:
        """Note an evaluation; return whether the run should end, after `train.patience` without a
        new best.
        """
        if self.is_better(found):
            self.best = Best(iteration, step, self.read(found), found.result)
            return False
        assert self.best is not None  # nothing is better than none
        self.best = best = dataclasses.replace(self.best, waited=self.best.waited + 1)
        patience = self.config.patience
        if not patience or best.waited < patience or iteration == self.config.iterations:
            return False
        log.info(
            "%d evaluations without a better %s than %.4f, of iteration %d: the run ends",
            best.waited,
            self.config.select_by,
            best.value,
            best.iteration,
        )
        return True

    def carried(self, iteration: int) -> Best | None:
        """Return the policy that an iteration starts from in place of the last (`train.carry`)."""
        best = self.best if self.config.carry == "best" else None
        return None if best is None or best.iteration == iteration else best

    def steps(self, metas: list[dict]) -> set[int]:
        """Return the steps of the checkpoints that this run, or one resumed from a checkpoint of
        these metas, may need.
        """
        found = {best["step"] for meta in metas if (best := meta.get("best"))}
        return found | ({self.best.step} if self.best else set())
