"""Make a run's rollouts, and keep each on disk until nothing can ask for it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from ssppo_jax.distributed import hosts
from ssppo_jax.errors import ConfigError
from ssppo_jax.rollout.store import Rollout, load_rollout, save_rollout
from ssppo_jax.runs import folder as run_folder
from ssppo_jax.training.position import Position
from ssppo_jax.weights.checkpoint import Checkpoints


class Rollouts:
    """Return the rollout of each iteration: from disk if this very rollout was made before, else a
    new one.
    """

    def __init__(
        self, config: ConfigDict, workdir: Path, fingerprint: str, checkpoints: Checkpoints
    ):
        self.lag, self.iterations = config.train.rollout_lag, config.train.iterations
        self.folder, self.checkpoints = workdir / "rollouts", checkpoints
        self.identity = {"fingerprint": fingerprint, "config": run_folder.digest(config)}

    def __call__(self, make: Callable[[int], Rollout], at: Position) -> Rollout:
        """Return this iteration's rollout; `make(iteration)` samples one by the present policy.

        With `train.rollout_lag` the policy samples the next iteration's rollout too, and that of
        this iteration is on disk since the one before.

        Raises:
          ConfigError: the rollout is missing, and the policy that sampled it was trained on since.
        """
        inside = at.step_in_iteration > 0
        older = self.lag > 0 and at.iteration > 0  # the policy that sampled it
        rollout = self._made(make, at.iteration, gone=inside or older)
        if self.lag and at.iteration + 1 < self.iterations:
            self._made(make, at.iteration + 1, gone=inside)
        if not inside:
            self.drop(at)
        return rollout

    def _made(self, make: Callable[[int], Rollout], iteration: int, *, gone: bool) -> Rollout:
        """Return an iteration's rollout from disk, or make it and save it."""
        path = self.folder / f"iteration_{iteration:05d}.npz"
        identity = self.identity | {"iteration": iteration}
        rollout = _kept(path, identity)
        if rollout is None and gone:
            raise ConfigError(
                f"{path} is missing, and the policy that sampled it is gone; start in a new"
                " --workdir"
            )
        if rollout is None:
            rollout = make(iteration)
            if hosts.is_first():
                save_rollout(path, rollout, identity)
        return rollout

    def drop(self, at: Position) -> None:
        """Delete older rollouts, but for those that a kept checkpoint needs: it stands in the midst
        of one, or the policy that sampled it is older (`train.rollout_lag`). Process 0 deletes.

        While a save is pending, the checkpoint before it may still be the one to continue from.
        """
        if not hosts.is_first() or self.checkpoints.pending:
            return
        needed = set()
        for position in (meta["position"] for meta in self.checkpoints.metas()):
            inside = position["step_in_iteration"] > 0
            if inside or self.lag:
                needed |= {position["iteration"], position["iteration"] + self.lag * inside}
        for path in self.folder.glob("iteration_*.npz"):
            number = int(path.stem.removeprefix("iteration_"))
            if number < at.iteration and number not in needed:
                path.unlink()


def _kept(path: Path, identity: dict) -> Rollout | None:
    """Return in all processes the rollout that process 0 finds on disk."""
    found = load_rollout(path, identity) if hosts.alone() else None
    if not hosts.alone() and hosts.on_first(lambda: load_rollout(path, identity) is not None):
        found = load_rollout(path, identity)
        if found is None:
            raise ConfigError(
                f"{path} is seen by process 0 alone; --workdir must be a folder that all"
                " processes share"
            )
    return found
