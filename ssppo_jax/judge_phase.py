"""Judging a list of prompts, a few at a time, each verdict journalled once it is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from ssppo_jax.config import call_kwargs
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.protocol import Journal, Oracle, consult, oracle_identity
from ssppo_jax.progress import bar
from ssppo_jax.sample_phase import Interrupted
from ssppo_jax.types import Verdict

JUDGED_AT_ONCE = 64  # prompts per oracle call: what an interruption can lose


def build_oracle(config: ConfigDict) -> Oracle:
    """The configured oracle."""
    return ORACLES[config.oracle.name](**call_kwargs(config.oracle))


def identity_of(config: ConfigDict) -> str:
    """The configured oracle's part of journal keys."""
    return oracle_identity(config.oracle.name, call_kwargs(config.oracle))


def judge(
    oracle: Oracle,
    encoded: Sequence[EncodedPrompt],
    texts: list[list[str]],
    *,
    journal: Journal | None,
    identity: str,
    stopped: Callable[[], bool] = lambda: False,
) -> Verdict:
    """The oracle's verdict on every group.

    Raises:
      Interrupted: `stopped()` became true; what was judged so far is in the journal.
    """
    parts: list[Verdict] = []
    with bar(len(encoded), what="judge", unit="prompts") as progress:
        for start in range(0, len(encoded), JUDGED_AT_ONCE):
            if stopped():
                raise Interrupted
            rows = slice(start, start + JUDGED_AT_ONCE)
            prompts = [e.prompt for e in encoded[rows]]
            parts.append(consult(oracle, prompts, texts[rows], journal=journal, identity=identity))
            progress.update(len(prompts))
    return concatenated(parts)


def concatenated(verdicts: Sequence[Verdict]) -> Verdict:
    """Verdicts on several batches of prompts as one. A batch that failed whole has no parts; its rows hold NaN."""
    preference, reward = (
        None if verdicts[0][i] is None else np.concatenate([verdict[i] for verdict in verdicts]) for i in range(2)
    )
    names = next((list(verdict.parts) for verdict in verdicts if verdict.parts), [])
    parts = {
        name: np.concatenate([np.full_like(v.reward, np.nan) if v.parts is None else v.parts[name] for v in verdicts])
        for name in names
    }
    return Verdict(preference, reward, tuple(f for verdict in verdicts for f in verdict.failed), parts or None)
