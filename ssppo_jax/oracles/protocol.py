"""What an oracle is, and everything that keeps its answers honest: checks, failures, retries, both
orders, a journal.

An oracle is a plain function `oracle(prompts, responses) -> Verdict`, made by a factory
`factory(**kwargs) -> oracle` whose keyword-only defaults are its config defaults. It may fail on a
prompt (`Failed(reason)`), never invent a number. Attributes set on it: `check(prompts)` raises for
prompts that it could never judge; a number `at_once` says how many prompts one call takes (else
`judge_phase.JUDGED_AT_ONCE`); `on_device` that it computes on the run's own devices, on the mesh
that `place(mesh)` gives it.

    verdict = consult(oracle, prompts, responses, journal=journal, identity=oracle_identity(name,
    kwargs)) kept = drop_failed(verdict, max_failed_fraction=0.1)     # kept.rows indexes prompts
    and samples
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssppo_jax.errors import GateError, UserError
from ssppo_jax.files import whole_lines
from ssppo_jax.types import Failed, Prompt, Verdict

Oracle = Callable[[list[Prompt], list[list[str]]], Verdict]  # B prompts and B x K responses

TOLERANCE = 1e-6  # of P + P^T = 1 and of the diagonal; float32 rounding is below 2e-7


# ---------------------------------------------------------------------------------------------- che


def check_prompts(oracle: Oracle, prompts: list[Prompt]) -> None:
    """Raises what `oracle.check(prompts)` raises of prompts it could never judge; an oracle without
    `check` takes all.

    For before anything is sampled: a missing answer should not be found out after the first
    iteration's sampling."""
    getattr(oracle, "check", lambda _: None)(prompts)


def checked(verdict: Verdict, shape: tuple[int, int] | None = None) -> Verdict:
    """The verdict in float32, every row that is not a preference (or a finite reward) turned into
    `Failed` and NaN.

    A preference row must be finite, in [0,1], have P + P^T = 1 and a diagonal of 0.5, each within
    1e-6. Rows the oracle itself failed keep their reason. `shape` is (B, K) as the responses have
    it.

    Raises:
        UserError: the record as a whole is malformed (both or neither field, wrong shape): a bug of
          the oracle.
    """
    _check_form(verdict, shape)
    pairwise = verdict.preference is not None
    values = np.array(verdict.preference if pairwise else verdict.reward, np.float64)
    problem = _preference_problem if pairwise else _reward_problem
    parts = {name: np.array(part, np.float64) for name, part in (verdict.parts or {}).items()}
    failed = tuple(
        old or problem(row) or _part_problem({name: part[b] for name, part in parts.items()})
        for b, (old, row) in enumerate(zip(verdict.failed, values, strict=True))
    )
    for x in (values, *parts.values()):
        x[[f is not None for f in failed]] = np.nan
    values = values.astype(np.float32)
    named = {name: part.astype(np.float32) for name, part in parts.items()} or None
    return Verdict(values if pairwise else None, None if pairwise else values, failed, named)


def _check_form(verdict: Verdict, shape: tuple[int, int] | None) -> None:
    if (verdict.preference is None) == (verdict.reward is None):
        raise UserError(
            "an oracle must return exactly one of Verdict.preference [B,K,K] and Verdict.reward"
            " [B,K]"
        )
    name, dims = (
        ("preference", "[B,K,K]") if verdict.preference is not None else ("reward", "[B,K]")
    )
    got = np.shape(getattr(verdict, name))
    b, k = shape if shape is not None else (len(verdict.failed), got[-1] if got else 0)
    want = (b, k, k) if name == "preference" else (b, k)
    if got != want or len(verdict.failed) != b:
        raise UserError(
            f"an oracle returned Verdict.{name} of shape {got} with {len(verdict.failed)} entries"
            f" in `failed`; for {b} prompts of {k} responses it must be {dims} = {want} with {b}"
            " entries"
        )
    wrong = [part for part, x in (verdict.parts or {}).items() if np.shape(x) != want]
    if wrong:
        raise UserError(
            f"an oracle returned Verdict.parts {wrong}: each must have the shape of its {name},"
            f" {want}"
        )


def _preference_problem(p: np.ndarray) -> Failed | None:  # [K,K]
    if not np.isfinite(p).all():
        return Failed("preference is not finite")
    if p.min() < 0 or p.max() > 1:
        return Failed("preference is outside [0, 1]")
    if np.abs(np.diagonal(p) - 0.5).max() > TOLERANCE:
        return Failed("preference of a response over itself is not 0.5")
    if np.abs(p + p.T - 1).max() > TOLERANCE:
        return Failed("preference and its transpose do not sum to 1")
    return None


def _reward_problem(reward: np.ndarray) -> Failed | None:  # [K]
    return None if np.isfinite(reward).all() else Failed("reward is not finite")


def _part_problem(parts: dict[str, np.ndarray]) -> Failed | None:  # [K] each
    bad = [name for name, part in parts.items() if not np.isfinite(part).all()]
    return Failed(f"part {bad[0]} of the reward is not finite") if bad else None


def verdict_of_rows(rows: Sequence[np.ndarray | Failed], k: int, *, pairwise: bool) -> Verdict:
    """One Verdict from one answer per prompt: `[K,K]` preferences or `[K]` rewards, or a `Failed`
    (a row of NaN)."""
    values = np.full((len(rows), k, k) if pairwise else (len(rows), k), np.nan, np.float32)
    for b, row in enumerate(rows):
        if not isinstance(row, Failed):
            values[b] = row
    failed = tuple(row if isinstance(row, Failed) else None for row in rows)
    return Verdict(values if pairwise else None, None if pairwise else values, failed)


# ---------------------------------------------------------------------------------------------- fai


class Kept(NamedTuple):
    """The prompts an oracle could judge, and the account of those it could not."""

    rows: np.ndarray  # [B'] int, indices of the kept prompts in the original batch
    verdict: Verdict  # of the kept prompts only, no Failed left
    dropped: int
    reasons: dict[str, int]  # reason -> prompts dropped for it, commonest first


def drop_failed(verdict: Verdict, *, max_failed_fraction: float) -> Kept:
    """Drops whole prompt groups that failed, counted by reason.

    Raises:
        GateError: more than `max_failed_fraction` of the prompts failed.
    """
    rows = np.array([b for b, failure in enumerate(verdict.failed) if failure is None], np.int64)
    counts = collections.Counter(f.reason for f in verdict.failed if f is not None).most_common()
    total, dropped = len(verdict.failed), len(verdict.failed) - len(rows)
    if dropped and dropped / total > max_failed_fraction:
        common = "\n".join(f"  {n} x {reason}" for reason, n in counts[:5])
        raise GateError(
            f"the oracle failed on {dropped} of {total} prompts ({dropped / total:.1%}), more than"
            f" the allowed max_failed_fraction = {max_failed_fraction:g}. Commonest"
            f" reasons:\n{common}\nMend the cause, or raise max_failed_fraction if these prompts"
            " may be dropped."
        )
    return Kept(rows, take_rows(verdict, rows), dropped, dict(counts))


def take_rows(verdict: Verdict, rows: np.ndarray) -> Verdict:
    """Some prompts of a verdict."""
    preference, reward = (
        None if x is None else x[rows] for x in (verdict.preference, verdict.reward)
    )
    parts = None if verdict.parts is None else {name: x[rows] for name, x in verdict.parts.items()}
    return Verdict(preference, reward, tuple(verdict.failed[b] for b in rows), parts)


def with_retries(
    fn: Callable[..., Any],
    *,
    attempts: int,
    base_delay: float,
    deadline: float,
    rng: np.random.Generator,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[..., Any]:
    """`fn`, tried up to `attempts` times; what still raises becomes `Failed(reason)`, never a
    number.

    The wait before retry i is base_delay * 2^i * u with u uniform in [0.5, 1.5), so that many
    callers do not come back together, or the exception's `retry_after` seconds if that is longer.
    No retry begins once `deadline` seconds from the first try would have passed; a call that is
    already under way is not interrupted, so `fn` needs a time limit of its own. `UserError` is
    raised at once: retrying does not mend a wrong setting."""
    if attempts < 1 or base_delay < 0 or not deadline > 0:
        raise UserError(
            "retries need attempts >= 1, base_delay >= 0 and deadline > 0; "
            f"got attempts={attempts}, base_delay={base_delay}, deadline={deadline}"
        )

    def tried(*args, **kwargs):
        start = clock()
        for attempt in range(attempts):
            try:
                return fn(*args, **kwargs)
            except UserError:
                raise
            except Exception as error:
                failed, asked_for = Failed(_brief(error)), getattr(error, "retry_after", 0.0)
            if attempt + 1 == attempts:
                return failed
            delay = max(base_delay * 2**attempt * rng.uniform(0.5, 1.5), asked_for)
            if clock() - start + delay > deadline:
                return Failed(f"deadline of {deadline:g} s passed: {failed.reason}")
            sleep(delay)

    return tried


def _brief(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


# ---------------------------------------------------------------------------------------------- bot


class Symmetric(NamedTuple):
    """A preference made of both presentation orders."""

    preference: np.ndarray  # P_ab's shape, float32
    asymmetry: (
        np.ndarray
    )  # same shape: P_ab + P_ba - 1, positive when the response shown first is favoured


def symmetrise(
    p_ab: np.ndarray,
    p_ba: np.ndarray,  # P(a beats b), a shown first  # P(b beats a), b shown first
) -> Symmetric:
    """P(a > b) = (P_ab + 1 - P_ba) / 2, so a judge that always favours the first place says exactly
    0.5.

    With Q[b,i,j] = P(i beats j | i shown first), call `symmetrise(Q, Q.swapaxes(-1, -2))`: P + P^T
    = 1 follows, and intransitive judges stay intransitive."""
    p_ab, p_ba = np.asarray(p_ab, np.float64), np.asarray(p_ba, np.float64)
    return Symmetric(
        ((p_ab + 1 - p_ba) / 2).astype(np.float32), (p_ab + p_ba - 1).astype(np.float32)
    )


def asymmetry_stats(
    asymmetry: np.ndarray,
    length: np.ndarray,  # [B,K,K]  # [B,K], characters or tokens
) -> dict[str, float]:
    """How much the order of presentation mattered, over the pairs i < j that were judged (not NaN).

    `mean` > 0 means the first place is favoured, `mean_abs` is its size, `length_correlation` the
    Pearson correlation of |asymmetry| with the joint length of the pair (0 when either is
    constant)."""
    i, j = np.triu_indices(length.shape[1], 1)
    a = asymmetry[:, i, j].ravel().astype(np.float64)
    joint = (length[:, i] + length[:, j]).ravel().astype(np.float64)
    seen = np.isfinite(a)
    a, joint = a[seen], joint[seen]
    if not a.size:
        return {"mean": 0.0, "mean_abs": 0.0, "length_correlation": 0.0}
    x, y = np.abs(a) - np.abs(a).mean(), joint - joint.mean()
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    correlation = float((x * y).sum() / scale) if scale > 0 else 0.0
    return {
        "mean": float(a.mean()),
        "mean_abs": float(np.abs(a).mean()),
        "length_correlation": correlation,
    }


# ---------------------------------------------------------------------------------------------- jou


def oracle_identity(name: str, kwargs: dict) -> str:
    """The oracle's part of a journal key. `kwargs` are all its keywords, defaults included."""
    return json.dumps([name, kwargs], sort_keys=True)


def journal_key(identity: str, prompt: Prompt, responses: list[str]) -> str:
    """SHA-256 of everything a verdict may depend on: oracle, messages, meta, responses in order.
    Not the prompt's id.

    Raises:
        UserError: `prompt.meta` holds something JSON cannot write, so its content cannot be hashed.
    """
    try:
        content = json.dumps([identity, prompt.messages, prompt.meta, responses], sort_keys=True)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"prompt {prompt.id!r} cannot be journalled: {error}. Its messages and meta may hold"
            " only JSON values (text, numbers, true/false/null, lists, dicts with text keys)."
        ) from error
    return hashlib.sha256(
        content.encode()
    ).hexdigest()  # json.dumps is ASCII, so lone surrogates cannot raise


def _journalled(value: list) -> np.ndarray:
    row = np.asarray(value, np.float32)
    if row.ndim not in (1, 2):
        raise ValueError("neither [K] nor [K,K]")
    return row


class Journal:
    """Verdicts kept on disk, one JSON line per judged prompt, so that an interrupted run never
    repeats a judgement.

    Lines are appended and synced once per batch. A torn last line (the process was killed while
    writing) is dropped and counted in `torn`; its prompt is simply judged again. Failures are not
    kept: a later run asks again. One process writes at a time.

    Raises:
        UserError: a line other than the last is not a journal entry; the file was edited or the
          disk is bad.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self.rows: dict[str, np.ndarray] = {}  # key -> [K,K] preference or [K] reward, float32
        self.parts: dict[
            str, dict[str, np.ndarray]
        ] = {}  # key -> the reward's named parts, [K] float32 each
        self.torn = 0
        if os.path.exists(self.path):
            self._load()

    def _load(self) -> None:
        lines, torn = whole_lines(Path(self.path))
        self.torn = int(torn)
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                self.rows[entry["key"]] = _journalled(entry["value"])
                self.parts[entry["key"]] = {
                    n: _journalled(part) for n, part in entry.get("parts", {}).items()
                }
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(
                    f"{self.path}:{number}: not a journal entry ({type(error).__name__}). "
                    "Delete this line, or the file: its prompts will then be judged again."
                ) from error

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, keys: Sequence[str], verdict: Verdict) -> None:
        """Appends the rows of a checked verdict that did not fail. float32 survives the text
        exactly."""
        values = verdict.preference if verdict.preference is not None else verdict.reward
        done = [(key, b) for b, key in enumerate(keys) if verdict.failed[b] is None]
        if not done:
            return
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        with open(self.path, "ab") as file:
            for key, b in done:
                self.rows[key] = values[b]
                self.parts[key] = {name: part[b] for name, part in (verdict.parts or {}).items()}
                parts = {name: part.tolist() for name, part in self.parts[key].items()}
                entry = {"key": key, "value": values[b].tolist()} | (
                    {"parts": parts} if parts else {}
                )
                file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def consult(
    oracle: Oracle,
    prompts: list[Prompt],
    responses: list[list[str]],  # B x K
    *,
    journal: Journal | None = None,
    identity: str = "",
) -> Verdict:
    """The checked verdict of `oracle`, asking it only about prompts the journal does not know.

    What one call was judging when the process died is lost; call with few prompts at a time where
    judging is dear.

    Args:
        oracle: the oracle to ask.
        prompts: B prompts.
        responses: K responses to each prompt, the same K for all.
        journal: verdicts already given; None asks about everything.
        identity: `oracle_identity(name, kwargs)`, part of the journal key.
    """
    sizes = {len(group) for group in responses}
    if len(responses) != len(prompts) or len(sizes) != 1 or 0 in sizes:
        raise UserError(
            f"an oracle judges B prompts with K responses each; got {len(prompts)} prompts and"
            f" {len(responses)} groups of sizes {sorted(sizes)}"
        )
    k = sizes.pop()
    if journal is None:
        return checked(oracle(prompts, responses), (len(prompts), k))
    keys = [journal_key(identity, p, group) for p, group in zip(prompts, responses, strict=True)]
    fresh = {
        key: b for b, key in reversed(list(enumerate(keys))) if key not in journal
    }  # equal prompts: asked once
    failures: dict[str, Failed | None] = {}
    if fresh:
        rows = sorted(fresh.values())
        verdict = checked(
            oracle([prompts[b] for b in rows], [responses[b] for b in rows]), (len(rows), k)
        )
        asked = [keys[b] for b in rows]
        journal.record(asked, verdict)
        failures = dict(zip(asked, verdict.failed, strict=True))
        pairwise = verdict.preference is not None
    else:
        pairwise = journal.rows[keys[0]].ndim == 2
    found = verdict_of_rows(
        [failures.get(key) or journal.rows[key] for key in keys], k, pairwise=pairwise
    )
    parts = _parts_of_rows(
        [None if failures.get(key) else journal.parts[key] for key in keys], (k,) * (1 + pairwise)
    )
    return found._replace(parts=parts)


def _parts_of_rows(
    rows: Sequence[dict[str, np.ndarray] | None], shape: tuple[int, ...]
) -> dict[str, np.ndarray] | None:
    """Named parts from those of each prompt (None: it failed, and holds NaN); None when there are
    no parts."""
    names = next((list(row) for row in rows if row), [])
    if any(row is not None and set(row) != set(names) for row in rows):
        raise UserError(
            f"some verdicts of this oracle have the parts {', '.join(names)} and others have not:"
            " its journal is of another version. Move that file away; its prompts will then be"
            " judged again."
        )
    missing = np.full(shape, np.nan, np.float32)
    return {
        name: np.stack([missing if row is None else row[name] for row in rows]) for name in names
    } or None
