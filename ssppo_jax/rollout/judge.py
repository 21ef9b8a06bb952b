"""Judging prompts, a few at a time, each verdict journalled once it is known; and ahead, while
others are sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssppo_jax.config import bind, call_kwargs
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
    consult,
    oracle_identity,
    take_rows,
)
from ssppo_jax.types import Verdict

JUDGED_AT_ONCE = (
    64  # prompts per oracle call, unless the oracle says: what an interruption can lose
)


def build_oracle(config: ConfigDict) -> Oracle:
    """The configured oracle."""
    return bind(ORACLES, config.oracle)()


def place_oracle(oracle: Oracle, mesh: Mesh) -> None:
    """Puts an oracle that is a model itself on the run's mesh; others have nothing to place.

    Of several processes each has its own texts to judge, and its oracle on its own devices.
    """
    if not hosts.alone():
        mesh = make_mesh((1, jax.local_device_count(), 1), jax.local_devices())
    getattr(oracle, "place", lambda _: None)(mesh)


def identity_of(config: ConfigDict) -> str:
    """The configured oracle's part of journal keys."""
    return oracle_identity(config.oracle.name, call_kwargs(ORACLES, config.oracle))


def judge(
    oracle: Oracle,
    encoded: Sequence[EncodedPrompt],
    texts: list[list[str]],
    *,
    journal: Journal | None,
    identity: str,
    stopped: Callable[[], bool] = lambda: False,
    show: bool = True,
) -> Verdict:
    """The oracle's verdict on every group; `show` its progress. Of several processes each judges
    its own prompts.

    Raises:
      Interrupted: `stopped()` became true; what was judged so far is in the journal.
    """

    def work(rows: np.ndarray) -> Verdict:
        mine, answers = [encoded[i] for i in rows], [texts[i] for i in rows]
        return _judged(oracle, mine, answers, journal, identity, stopped, show)

    order, verdicts = hosts.share([e.address for e in encoded], work, "judging")
    return take_rows(concatenated(verdicts), order)


def _judged(
    oracle: Oracle,
    encoded: Sequence[EncodedPrompt],
    texts: list[list[str]],
    journal: Journal | None,
    identity: str,
    stopped: Callable[[], bool],
    show: bool,
) -> Verdict:
    """`judge` in one process."""
    parts: list[Verdict] = []
    at_once = getattr(oracle, "at_once", JUDGED_AT_ONCE)
    with bar(len(encoded), what="judge", unit="prompts", show=show) as progress:
        for start in range(0, len(encoded), at_once):
            if stopped():
                raise Interrupted
            rows = slice(start, start + at_once)
            prompts = [e.prompt for e in encoded[rows]]
            parts.append(consult(oracle, prompts, texts[rows], journal=journal, identity=identity))
            progress.update(len(prompts))
    return concatenated(parts)


class PrefetchJudge:
    """Judges, on a thread beside the sampling of the next prompts, what is sampled already: into
    the journal.

    Whoever judges afterwards finds those verdicts there, judges the rest, and meets again whatever
    failed here, so nothing else depends on how far this came. Oracles that compute on the run's own
    devices (`oracle.on_device`) are left alone: they and the sampler would only wait for each
    other.

        with PrefetchJudge(oracle, journal=journal, identity=identity) as ahead:
            ...                                # ahead.add(encoded, texts), batch by batch
    """

    def __init__(self, oracle: Oracle, *, journal: Journal, identity: str):
        self.oracle, self.journal, self.identity = oracle, journal, identity
        self.idle, self.left = getattr(oracle, "on_device", False), False
        self.pool = ThreadPoolExecutor(1)

    def add(self, encoded: Sequence[EncodedPrompt], texts: list[list[str]]) -> None:
        mine = [i for i, e in enumerate(encoded) if hosts.mine(e.address)]
        if mine and not self.idle:
            self.pool.submit(self._judge, [encoded[i] for i in mine], [texts[i] for i in mine])

    def _judge(self, encoded: list[EncodedPrompt], texts: list[list[str]]) -> None:
        _judged(
            self.oracle, encoded, texts, self.journal, self.identity, lambda: self.left, show=False
        )

    def __enter__(self) -> PrefetchJudge:
        return self

    def __exit__(self, *_) -> None:
        """Ends with the oracle's call that is under way."""
        self.left = True
        self.pool.shutdown(wait=True, cancel_futures=True)


def part_stats(verdict: Verdict, texts: list[list[str]]) -> dict[str, float]:
    """What is logged of a verdict's parts: the mean of each part of a reward; how much a judge
    favours the first place.

    `texts` are the B x K responses judged.
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


def concatenated(verdicts: Sequence[Verdict]) -> Verdict:
    """Verdicts on several batches of prompts as one. A batch that failed whole has no parts; its
    rows hold NaN."""
    preference, reward = (
        None if verdicts[0][i] is None else np.concatenate([verdict[i] for verdict in verdicts])
        for i in range(2)
    )
    names = next((list(verdict.parts) for verdict in verdicts if verdict.parts), [])
    parts = {
        name: np.concatenate([_missing(v) if v.parts is None else v.parts[name] for v in verdicts])
        for name in names
    }
    return Verdict(
        preference, reward, tuple(f for verdict in verdicts for f in verdict.failed), parts or None
    )


def _missing(verdict: Verdict) -> np.ndarray:
    """The part of a batch that failed whole."""
    return np.full_like(
        verdict.reward if verdict.preference is None else verdict.preference, np.nan
    )
