"""The contract of an oracle, and what keeps its answers honest: checks, failures, both orders of
presentation, a journal.

An oracle is added by writing a factory: a function with keyword-only settings that returns
`Oracle(ask)`. The defaults of its keywords are their config defaults.

    def longest(*, weight: float = 1.0) -> Oracle:
        def ask(prompts, responses):
            reward = np.array([[weight * len(text) for text in group] for group in responses])
            return Verdict(None, reward, (None,) * len(prompts))

        return Oracle(ask)

    ORACLES = {"longest": longest}
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from ssppo_jax.config import OWN, told_by_line
from ssppo_jax.errors import ConfigError, GateError, UserError
from ssppo_jax.oracles.store import KeyedStore
from ssppo_jax.types import Failed, Prompt, Verdict

TRIED = ("", "I do not know.")  # responses that a user's function is tried with before a run
TOLERANCE = 1e-6  # of P + P^T = 1 and of the diagonal; float32 rounding is below 2e-7


def _nothing(_: Any) -> None:
    """Do nothing: the default of `Oracle.check` and `Oracle.place`."""


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Judge responses to prompts.

    Attributes:
        ask: judges B prompts with B x K responses. It may fail on a prompt (`Failed(reason)`); it
          must not invent a number.
        check: raises ConfigError or DataError for prompts that the oracle cannot judge. It is
          called before anything is sampled.
        place: puts a model that judges on the run's mesh.
        on_device: the oracle computes on the run's own devices, so it is not asked while responses
          are sampled.
        at_once: prompts per call of `ask`: a run may stop between calls, and an interruption loses
          at most one call.
    """

    ask: Callable[[list[Prompt], list[list[str]]], Verdict]
    check: Callable[[list[Prompt]], None] = _nothing
    place: Callable[[Mesh], None] = _nothing
    on_device: bool = False
    at_once: int = 64


def require_oracle(made: Any, name: str) -> Oracle:
    """Return what the factory of oracle `name` made. One of a user's file is tried before a run.

    Raises:
        ConfigError: it is no `Oracle`.
    """
    if not isinstance(made, Oracle):
        raise ConfigError(
            f"oracle {name}: its factory returned a {type(made).__name__}. Return Oracle(ask) of"
            " ssppo_jax.oracles.protocol, where ask(prompts, responses) returns a Verdict."
        )
    return _guarded(made, name) if OWN.fullmatch(name) else made


def asking(
    members: Collection[Oracle],
    ask: Callable[[list[Prompt], list[list[str]]], Verdict],
    check: Callable[[list[Prompt]], None],
) -> Oracle:
    """Return an oracle that asks others, and is placed and portioned as they need it."""

    def place(mesh: Mesh) -> None:
        for member in members:
            member.place(mesh)

    return Oracle(
        ask,
        check,
        place,
        on_device=any(member.on_device for member in members),
        at_once=min(member.at_once for member in members),
    )


def _guarded(oracle: Oracle, name: str) -> Oracle:
    """Return an oracle of a user's file whose mistakes are told by file and line, and which is
    asked about an empty response and a short one before anything is sampled."""

    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        about = f"asked about {len(prompts)} prompts; ask(prompts, responses) returns a Verdict"
        with told_by_line(name, about):
            verdict = oracle.ask(prompts, responses)
        if not isinstance(verdict, Verdict):
            raise UserError(
                f"oracle {name}: ask returned a {type(verdict).__name__}; return"
                " Verdict(preference, reward, failed) of ssppo_jax.types, with preference or reward"
                " None, and failed=(None,) * len(prompts) where nothing failed"
            )
        try:
            values = np.asarray(values_of(verdict), np.float32)
            _check_form(verdict, values, (len(prompts), len(responses[0])))
        except (UserError, TypeError, ValueError) as error:  # text, or lists of unequal length
            raise UserError(f"oracle {name}: {error}") from error
        return verdict

    def check(prompts: list[Prompt]) -> None:
        with told_by_line(name, "its check of the prompts"):
            oracle.check(prompts)
        verdict = ask(prompts[:1], [list(TRIED)])
        for own, found in zip(
            verdict.failed, checked(verdict, (1, len(TRIED))).failed, strict=True
        ):
            if own is None and found is not None:
                raise ConfigError(f"oracle {name}: for the responses {TRIED}: {found.reason}")

    return dataclasses.replace(oracle, ask=ask, check=check)


# ---- checks --------------------------------------------------------------------------------------


def values_of(verdict: Verdict) -> np.ndarray:  # [B,K,K] or [B,K]
    """Return the preferences of a verdict, or the rewards of one that has no preferences.

    Raises:
        UserError: it has both or neither, which is a bug of the oracle.
    """
    values = verdict.reward if verdict.preference is None else verdict.preference
    if values is None or (verdict.preference is not None and verdict.reward is not None):
        raise UserError(
            "an oracle must return exactly one of Verdict.preference [B,K,K] and Verdict.reward"
            " [B,K]"
        )
    return values


def checked(verdict: Verdict, shape: tuple[int, int] | None = None) -> Verdict:
    """Return the verdict in float32, with every malformed row turned into `Failed` and NaN.

    A preference row must be finite, in [0,1], have P + P^T = 1 and a diagonal of 0.5, each within
    1e-6. A reward row must be finite. Rows that the oracle itself failed keep their reason.

    Args:
        verdict: the oracle's answer.
        shape: (B, K) of the responses; None takes it from the verdict.

    Raises:
        UserError: the record as a whole is malformed (both or neither field, a wrong shape): a bug
          of the oracle.
    """
    pairwise = verdict.preference is not None
    values = np.array(values_of(verdict), np.float64)
    _check_form(verdict, values, shape)
    problem = _preference_problem if pairwise else _reward_problem
    parts = {name: np.array(part, np.float64) for name, part in (verdict.parts or {}).items()}
    failed = tuple(
        old or problem(row) or _part_problem({name: part[b] for name, part in parts.items()})
        for b, (old, row) in enumerate(zip(verdict.failed, values, strict=True))
    )
    for x in (values, *parts.values()):
        x[[f is not None for f in failed]] = np.nan
    named = {name: part.astype(np.float32) for name, part in parts.items()} or None
    return verdict_of(values.astype(np.float32), failed, named)


def verdict_of(
    values: np.ndarray, failed: tuple[Failed | None, ...], parts: dict[str, np.ndarray] | None
) -> Verdict:
    """Return a verdict of preferences [B,K,K] or of rewards [B,K]."""
    pairwise = values.ndim == 3
    return Verdict(values if pairwise else None, None if pairwise else values, failed, parts)


def _check_form(verdict: Verdict, values: np.ndarray, shape: tuple[int, int] | None) -> None:
    pairwise = verdict.preference is not None
    name, dims = ("preference", "[B,K,K]") if pairwise else ("reward", "[B,K]")
    got, entries = values.shape, len(verdict.failed)
    b, k = shape if shape is not None else (entries, got[-1] if got else 0)
    want = (b, k, k) if pairwise else (b, k)
    if got != want or entries != b:
        raise UserError(
            f"an oracle returned Verdict.{name} of shape {got} with {entries} entries in `failed`;"
            f" for {b} prompts of {k} responses it must be {dims} = {want} with {b} entries"
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


def _part_problem(parts: dict[str, np.ndarray]) -> Failed | None:
    bad = [name for name, part in parts.items() if not np.isfinite(part).all()]
    return Failed(f"part {bad[0]} of the reward is not finite") if bad else None


# ---- failures ------------------------------------------------------------------------------------


def first_failure(answers: Iterable[Any]) -> Failed | None:
    """Return the first `Failed` of a prompt's answers; None if there is none."""
    return next((answer for answer in answers if isinstance(answer, Failed)), None)


def by_name(
    names: Sequence[str], groups: Sequence[Sequence[Sequence[float] | Failed]]
) -> tuple[dict[str, np.ndarray], tuple[Failed | None, ...]]:
    """Return each named number of the responses, [B,K] float64, and the failures of the prompts.

    A prompt with a failed response has NaN for all of them.
    """
    failed = tuple(first_failure(group) for group in groups)
    nothing = [np.nan] * len(names)
    table = [
        [row if failure is None else nothing for row in group]
        for group, failure in zip(groups, failed, strict=True)
    ]
    return dict(zip(names, np.moveaxis(np.array(table, np.float64), 2, 0), strict=True)), failed


class Kept(NamedTuple):
    """The prompts an oracle could judge, and the counts of those it could not."""

    rows: np.ndarray  # [B'] int, indices of the kept prompts in the original batch
    verdict: Verdict  # of the kept prompts only, no Failed left
    dropped: int
    reasons: dict[str, int]  # reason -> prompts dropped for it, commonest first


def drop_failed(verdict: Verdict, *, max_failed_fraction: float) -> Kept:
    """Drop the prompts that failed, whole groups, and count them by reason.

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
    """Return the verdict on some of the prompts, in the order of `rows`."""
    parts = None if verdict.parts is None else {name: x[rows] for name, x in verdict.parts.items()}
    failed = tuple(verdict.failed[b] for b in rows)
    return verdict_of(values_of(verdict)[rows], failed, parts)


def concatenated(verdicts: Sequence[Verdict]) -> Verdict:
    """Return verdicts on several batches of prompts as one. A batch that failed whole has no parts;
    its rows hold NaN."""
    values = np.concatenate([values_of(verdict) for verdict in verdicts])
    names = next((list(verdict.parts) for verdict in verdicts if verdict.parts), [])
    parts = {name: np.concatenate([_part(v, name) for v in verdicts]) for name in names} or None
    failed = tuple(f for verdict in verdicts for f in verdict.failed)
    return verdict_of(values, failed, parts)


def _part(verdict: Verdict, name: str) -> np.ndarray:
    if verdict.parts is None:
        return np.full_like(values_of(verdict), np.nan)
    return verdict.parts[name]


# ---- both orders of presentation -----------------------------------------------------------------


class Symmetric(NamedTuple):
    """A preference made of both presentation orders."""

    preference: np.ndarray  # float32
    asymmetry: np.ndarray  # float32, P_ab + P_ba - 1: positive when the first place is favoured


def symmetrise(p_ab: np.ndarray, p_ba: np.ndarray) -> Symmetric:
    """Return P(a > b) = (P_ab + 1 - P_ba) / 2, so a judge that always favours the first place says
    exactly 0.5.

    With Q[b,i,j] = P(i beats j | i shown first), call `symmetrise(Q, Q.swapaxes(-1, -2))`: P + P^T
    = 1 follows, and intransitive judges stay intransitive.

    Args:
        p_ab: P(a beats b) with a shown first.
        p_ba: P(b beats a) with b shown first, of the same shape.
    """
    p_ab, p_ba = np.asarray(p_ab, np.float64), np.asarray(p_ba, np.float64)
    preference, asymmetry = (p_ab + 1 - p_ba) / 2, p_ab + p_ba - 1
    return Symmetric(preference.astype(np.float32), asymmetry.astype(np.float32))


def asymmetry_stats(asymmetry: np.ndarray, length: np.ndarray) -> dict[str, float]:
    """Return how much the order of presentation mattered, over the pairs i < j that were judged.

    `mean` > 0: the first place is favoured. `mean_abs` is its size. `length_correlation` is the
    Pearson correlation of |asymmetry| with the joint length of the pair (0 when either is
    constant).

    Args:
        asymmetry: [B,K,K]; NaN where a pair was not judged.
        length: [B,K], characters or tokens.
    """
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
    mean_abs = float(np.abs(a).mean())
    return {"mean": float(a.mean()), "mean_abs": mean_abs, "length_correlation": correlation}


# ---- journal -------------------------------------------------------------------------------------


Journal = KeyedStore[Verdict]  # each on one prompt


def open_journal(path: str | os.PathLike) -> Journal:
    """Open the file in which the judgements of a run are kept, so that none is made twice."""
    return KeyedStore(path, _read_verdict)


def _read_verdict(fields: dict[str, Any]) -> Verdict:
    value = np.asarray(fields["value"], np.float32)
    parts = {name: np.asarray(x, np.float32) for name, x in fields.get("parts", {}).items()}
    if value.ndim not in (1, 2) or any(part.shape != value.shape for part in parts.values()):
        raise ValueError("neither [K] nor [K,K]")
    named = {name: part[None] for name, part in parts.items()} or None
    return verdict_of(value[None], (None,), named)


def _fields(verdict: Verdict) -> dict[str, Any]:
    """Return what the journal keeps of a verdict on one prompt; parts only where there are any."""
    parts = {name: part[0].tolist() for name, part in (verdict.parts or {}).items()}
    return {"value": values_of(verdict)[0].tolist()} | ({"parts": parts} if parts else {})


def oracle_identity(name: str, kwargs: dict) -> str:
    """Return the oracle's part of a journal key. `kwargs` are all its keywords, defaults
    included."""
    return json.dumps([name, kwargs], sort_keys=True)


def journal_key(identity: str, prompt: Prompt, responses: list[str]) -> str:
    """Return the SHA-256 of all that a verdict may depend on: oracle, messages, meta and responses
    in order, not the prompt's id.

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
    # json.dumps writes ASCII, so lone surrogates cannot raise here
    return hashlib.sha256(content.encode()).hexdigest()


def consult(
    oracle: Oracle,
    prompts: list[Prompt],
    responses: list[list[str]],
    *,
    journal: Journal | None = None,
    identity: str = "",
) -> Verdict:
    """Return the checked verdict of an oracle, asking it only about prompts the journal lacks.

    Equal prompts are asked once. Failures are not kept, so a later run asks again. If the process
    dies, the judgements of this call are lost: pass few prompts at a time where judging is dear.

    Args:
        oracle: the oracle to ask.
        prompts: B prompts.
        responses: K responses to each prompt, the same K for all.
        journal: judgements already made; None asks about everything.
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
        return checked(oracle.ask(prompts, responses), (len(prompts), k))
    keys = [journal_key(identity, p, group) for p, group in zip(prompts, responses, strict=True)]
    found = {key: journal.known[key] for key in keys if key in journal.known}
    rows = {key: b for b, key in reversed(list(enumerate(keys))) if key not in found}
    if rows:
        fresh = sorted(rows.values())
        asked = [prompts[b] for b in fresh], [responses[b] for b in fresh]
        verdict = checked(oracle.ask(*asked), (len(fresh), k))
        made = {keys[b]: take_rows(verdict, np.array([n])) for n, b in enumerate(fresh)}
        judged = {key: one for key, one in made.items() if one.failed == (None,)}
        journal.add({key: _fields(one) for key, one in judged.items()})
        found |= {key: one._replace(parts=None) for key, one in made.items()} | judged
    verdicts = [found[key] for key in keys]
    named = [set(one.parts or ()) for one in verdicts if one.failed == (None,)]
    if any(names != named[0] for names in named):
        raise UserError(
            f"some verdicts of this oracle have the parts {', '.join(sorted(set.union(*named)))}"
            " and others have not: its journal is of another version. Move that file away; its"
            " prompts will then be judged again."
        )
    return concatenated(verdicts)
