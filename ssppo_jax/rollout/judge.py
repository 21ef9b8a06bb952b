"""Judge prompts, a few at a time, into a journal; also ahead, while others are sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssppo_jax.config import bind, call_kwargs, told_by_line, user_files
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.distributed import hosts
from ssppo_jax.distributed.mesh import make_mesh
from ssppo_jax.distributed.progress import bar
from ssppo_jax.errors import Interrupted
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.protocol import (
    Journal,
    Oracle,
    asymmetry_stats,
    concatenated,
    consult,
    oracle_identity,
    require_oracle,
    take_rows,
    values_of,
)
from ssppo_jax.types import Verdict


def build_oracle(config: ConfigDict) -> Oracle:
    """Return the configured oracle.

    Raises:
      ConfigError: its factory returns something else.
    """
    name = config.oracle.name
    with told_by_line(name, "making the oracle"):
        made = bind(ORACLES, config.oracle)()
    return require_oracle(made, name)


def no_oracle() -> Oracle:
    """Return what stands for the oracle of a run on given responses: it is never asked."""

    def ask(prompts, responses):
        raise ValueError("a run on given responses asked its oracle")

    return Oracle(ask)


def place_oracle(oracle: Oracle, mesh: Mesh) -> None:
    """Put an oracle that is a model itself on the run's mesh.

    Of several processes each judges its own texts, with the oracle on its own devices.
    """
    if not hosts.alone():
        mesh = make_mesh((1, jax.local_device_count(), 1), jax.local_devices())
    oracle.place(mesh)


def identity_of(config: ConfigDict) -> str:
    """Return the configured oracle's part of journal keys."""
    files = user_files(config.oracle)  # another content judges anew
    kwargs = call_kwargs(ORACLES, config.oracle) | ({"files": files} if files else {})
    return oracle_identity(config.oracle.name, kwargs)


def judge(
    oracle: Oracle,
    encoded: Sequence[EncodedPrompt],
    texts: list[list[str]],
    *,
    journal: Journal | None,
    identity: str,
    stopped: Callable[[], bool] = lambda: False,
) -> Verdict:
    """Return the oracle's verdict on every group. Of several processes each judges its own prompts.

    Args:
      oracle: the oracle to ask.
      encoded: M prompts.
      texts: M x K responses.
      journal: where judgements are kept; None keeps none.
      identity: the oracle's part of journal keys.
      stopped: asked between the calls of the oracle.

    Raises:
      Interrupted: `stopped()` became true; what was judged so far is in the journal.
    """

    def work(rows: np.ndarray) -> Verdict:
        mine, answers = [encoded[i] for i in rows], [texts[i] for i in rows]
        return _judged(oracle, mine, answers, journal, identity, stopped)

    order, verdicts = hosts.share([int(e.address) for e in encoded], work, "judging")
    return take_rows(concatenated(verdicts), order)


def _judged(
    oracle: Oracle,
    encoded: Sequence[EncodedPrompt],
    texts: list[list[str]],
    journal: Journal | None,
    identity: str,
    stopped: Callable[[], bool],
    show: bool = True,
) -> Verdict:
    """Judge in one process."""
    parts: list[Verdict] = []
    with bar(len(encoded), what="judge", unit="prompts", show=show) as progress:
        for start in range(0, len(encoded), oracle.at_once):
            if stopped():
                raise Interrupted
            rows = slice(start, start + oracle.at_once)
            prompts = [e.prompt for e in encoded[rows]]
            parts.append(consult(oracle, prompts, texts[rows], journal=journal, identity=identity))
            progress.update(len(prompts))
    return concatenated(parts)


class PrefetchJudge:
    """Judge into the journal, on a thread beside the sampling of the next prompts, what is sampled
    already.

    `judge` afterwards finds those verdicts in the journal, judges the rest, and meets again what
    failed here, so nothing else depends on how far this came. An oracle on the run's own devices
    (`oracle.on_device`) is not asked: it and the sampler would only wait for each other.

        with PrefetchJudge(oracle, journal=journal, identity=identity) as ahead:
            ...                                # ahead.add(encoded, texts), batch by batch
    """

    def __init__(self, oracle: Oracle, *, journal: Journal, identity: str):
        self.oracle, self.journal, self.identity, self.left = oracle, journal, identity, False
        self.pool = ThreadPoolExecutor(1)

    def add(self, encoded: Sequence[EncodedPrompt], texts: list[list[str]]) -> None:
        """Have this process's share of a batch judged."""
        mine = [i for i, e in enumerate(encoded) if hosts.mine(int(e.address))]
        if mine and not self.oracle.on_device:
            self.pool.submit(self._judge, [encoded[i] for i in mine], [texts[i] for i in mine])

    def _judge(self, encoded: list[EncodedPrompt], texts: list[list[str]]) -> None:
        _judged(
            self.oracle, encoded, texts, self.journal, self.identity, lambda: self.left, show=False
        )

    def __enter__(self) -> PrefetchJudge:
        return self

    def __exit__(self, *_) -> None:
        """End with the oracle's call that is under way."""
        self.left = True
        self.pool.shutdown(wait=True, cancel_futures=True)


def part_stats(verdict: Verdict, texts: list[list[str]]) -> dict[str, float]:
    """Return what is logged of a verdict's parts: the mean of each part of a reward, or how much a
    judge favours the first place.

    Args:
      verdict: on B prompts.
      texts: the B x K responses judged.
    """
    parts = verdict.parts or {}
    if verdict.preference is None:
        return {
            f"reward/{name}": float(np.mean(part)) if part.size else 0.0
            for name, part in parts.items()
        }
    if "asymmetry" not in parts or not texts:
        return {}
    stats = asymmetry_stats(
        parts["asymmetry"], np.array([[len(text) for text in group] for group in texts])
    )
    return {f"oracle/asymmetry/{name}": value for name, value in stats.items()}


def mixture_stats(encoded: Sequence[EncodedPrompt], verdict: Verdict) -> dict[str, float]:
    """Return the prompts of each part of a mixture and their mean reward, or how far the oracle's
    preferences are from a tie.
    """
    found: dict[str, float] = {}
    names = np.array([e.prompt.meta.get("mixture", "") for e in encoded])
    for name in sorted(set(names) - {""}):
        values = values_of(verdict)[names == name]
        found[f"mixture/{name}/prompts"] = float(len(values))
        if verdict.preference is None:
            found[f"mixture/{name}/reward"] = float(values.mean())
        else:
            i, j = np.triu_indices(values.shape[1], 1)
            found[f"mixture/{name}/decided"] = float(np.abs(values[:, i, j] - 0.5).mean() * 2)
    return found
