"""Load prompts whose responses are given: preference pairs, ranked groups, demonstrations.

The rows are TRL's and its relatives': `prompt`, `chosen`, `rejected` as text or as turns, the
prompt inside both conversations, or SPPO's and UltraFeedback's further columns.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from ssppo_jax.config import one_of
from ssppo_jax.data import sources
from ssppo_jax.data.sources import Row
from ssppo_jax.errors import ConfigError, DataError, listed
from ssppo_jax.types import Given, Prompt

GIVEN = True  # responses come with the prompts of this module's sources

SIDES = ("chosen", "rejected")
JUDGED_BY = ("auto", "label", "scores", "probs")
MATRIX_TOLERANCE = 1e-3  # how far P + P^T may be from 1 before it is an error and not rounding
PARTS = ("tools", *sources.MEDIA)  # columns that would be read beside the text
# Columns that make responses and their worth; `messages` is a demonstration, or a copy of `chosen`.
# `prompt_id`, which several rows may share, is known and not read.
USED = frozenset(
    {
        "id", "prompt", "prompt_id", "messages", "chosen", "rejected", "completion", "responses",
        "scores", "preference", "score_chosen", "score_rejected", "chosen_probs",
        "chosen_probs_win", "chosen_probs_lose",
    }
)  # fmt: skip
# A transcript as Anthropic's HH-RLHF writes it.
_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}

_log = logging.getLogger(__name__)

# A row's conversation so far, the responses to it, and what they are and how they are judged.
Read = tuple[tuple[dict, ...], Given, str]


def answered(
    *,
    path: str = "",
    repo_id: str = "",
    split: str = "train",
    subset: str = "",
    revision: str = "",
    judged_by: Annotated[str, one_of(*JUDGED_BY)] = "auto",
    bad_rows: Annotated[str, one_of("error", "drop")] = "error",
) -> list[Prompt]:
    """Read prompts with responses, from a file of JSON lines or a Hugging Face data set.

    A row is one of these; every row of a data set has the same number of responses:

    * a pair: `prompt`, `chosen`, `rejected`, each a string or a list of turns. The conversations
      may repeat the prompt, and `prompt` may be absent: it is then what both have in common. A
      string with "\\n\\nHuman:" turns is read as a conversation.
    * a group: `prompt`, `responses` (K) and `scores` (K numbers) or `preference` (K x K, the
      chance that the first wins).
    * a demonstration: `prompt` and `completion`, or `messages` that end with the assistant's turn.

    A pair's chosen response wins for certain, unless `chosen_probs` (SPPO's columns, with
    `chosen_probs_win` and `chosen_probs_lose` for the win rates against the sampling policy) says
    otherwise. Repeated rows are left out, counted and listed.

    Args:
        path: a file with one JSON object a line.
        repo_id: data set id (owner/name) or local folder, in place of a file.
        split: split or slice of the data set, e.g. train_prefs or train[:1000].
        subset: the data set's configuration name; empty takes its default.
        revision: commit or tag, for a run that can be repeated; empty takes the newest.
        judged_by: label (chosen wins), probs (`chosen_probs`), scores (`score_chosen` and
          `score_rejected` through oracle.reward_temperature); auto takes probs where they are.
        bad_rows: error, or drop to leave rows that cannot be used out, counted and listed.

    Raises:
        ConfigError: no file and no data set, or both. DataError: it cannot be read, holds nothing,
          or has bad rows (`file:line: reason`).
    """
    if bool(path) == bool(repo_id):
        raise ConfigError(
            "data source 'answered' needs one of a file and a data set:"
            " --config.data.source.path=pairs.jsonl, or --config.data.source.repo_id=owner/name"
        )
    if path:
        rows = sources.json_lines(path)
    else:
        rows = sources.hub_rows(repo_id, split=split, subset=subset, revision=revision)
    return _prompts(rows, judged_by=judged_by, bad_rows=bad_rows)


SOURCES = {"answered": answered}


def _prompts(rows: Iterable[tuple[str, Row]], *, judged_by: str, bad_rows: str) -> list[Prompt]:
    """Turn every row into a prompt with its responses; name every bad row at once."""
    prompts: list[Prompt] = []
    bad: list[str] = []
    repeats: list[str] = []
    seen: dict[str, tuple[str, Prompt]] = {}
    unused: Counter[str] = Counter()
    kinds: dict[str, str] = {}  # what the responses are and how judged -> the first such row
    for place, row in rows:
        try:
            prompt, kind = _prompt(row, judged_by)
        except (ValueError, OverflowError) as exc:
            bad.append(f"{place}: {exc}")
            continue
        if prompt.id in seen:
            first, same = seen[prompt.id]
            if prompt == same:
                repeats.append(f"{place} ({first})")
            else:
                bad.append(
                    f"{place}: id {prompt.id!r} is that of another row, {first}; give each its own,"
                    ' or remove the column "id"'
                )
            continue
        seen[prompt.id] = place, prompt
        kinds.setdefault(kind, place)
        prompts.append(prompt)
        assert isinstance(row, dict)
        unused.update(key for key, value in row.items() if key not in USED and value is not None)
    if bad and not prompts:
        alike = {reason.partition(": ")[2] for reason in bad}
        if len(alike) == 1:  # a column has another name, say
            raise DataError(f"none of {_counted(len(bad), 'row')} can be used; {bad[0]}")
    if bad and bad_rows == "error":
        remedy = "to leave such rows out, counted: --config.data.source.bad_rows=drop"
        raise DataError("\n".join([_counted(len(bad), "bad row"), *listed(bad), remedy]))
    if not prompts:
        raise DataError("\n".join(["the data source holds no usable rows", *listed(bad)]))
    if len(kinds) > 1:
        found = "; ".join(f"{place}: {kind}" for kind, place in kinds.items())
        raise DataError(
            f"the rows are not of one kind: {found}. Give every row the same number of responses"
            " and the same columns that judge them, or part the file"
        )
    if bad:
        _log.warning("left out %s:\n%s", _counted(len(bad), "bad row"), "\n".join(listed(bad)))
    if repeats:
        _log.warning(
            "left out %s (of the row in brackets):\n%s",
            _counted(len(repeats), "repeated row"),
            "\n".join(listed(repeats)),
        )
    _log.info("%d rows, each %s", len(prompts), next(iter(kinds)))
    if unused:
        _log.info("columns that are not used: %s", ", ".join(unused))
    return prompts


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n > 1 else ''}"


def _prompt(row: Row, judged_by: str) -> tuple[Prompt, str]:
    """Turn one row into a prompt, and say what it is; raise ValueError with the reason if not."""
    if isinstance(row, str):
        raise ValueError(row)
    for key in PARTS:
        if row.get(key):
            raise ValueError(f'has "{key}", which no model here reads; remove the column')
    row = {key: value for key, value in row.items() if value is not None}
    if "chosen" in row or "rejected" in row:
        turns, given, kind = _pair(row, judged_by)
    elif "responses" in row:
        turns, given, kind = _group(row)
    elif "completion" in row or "messages" in row:
        turns, given, kind = _demonstration(row)
    else:
        raise ValueError(
            'has no responses: it needs "chosen" and "rejected", "responses", "completion" or'
            f' "messages"; the row has: {", ".join(map(str, row)) or "nothing"}'
        )
    texts = given.texts
    for n, text in enumerate(texts, 1):
        if not text.strip():
            raise ValueError(f"response {n} of {len(texts)} is empty")
        sources.check_text(text, f"response {n} of {len(texts)}")
    if len(set(texts)) == 1 < len(texts):
        raise ValueError("all responses are the same text, so nothing is preferred")
    sources.read_messages(list(turns), "prompt")  # ends with the user's turn
    named = sources._id(row["id"]) if "id" in row else sources._content_id((turns, texts))
    return Prompt(named, turns, given=given), kind


# ---- pairs ---------------------------------------------------------------------------------------


def _pair(row: Mapping[str, Any], judged_by: str) -> Read:
    chosen, rejected = (sources.field_of(row, name) for name in SIDES)
    sides = _side(chosen, '"chosen"'), _side(rejected, '"rejected"')
    if "prompt" in row:
        turns = _prompt_turns(row)
        texts = _both(turns, *sides)
    else:
        try:
            turns, texts = _common(*sides)
        except ValueError as exc:
            others = ", ".join(key for key in row if key not in USED)
            told = f"; the row also has: {others}" if others else ""
            raise ValueError(f"{exc}{told}") from None
    if judged_by == "auto":
        judged_by = "probs" if "chosen_probs" in row else "label"
    if judged_by == "label":
        given = Given(texts, preference=((0.5, 1.0), (0.0, 0.5)))
        return turns, given, "a pair whose chosen response wins for certain"
    if judged_by == "scores":
        scores = tuple(_number(row, key) for key in ("score_chosen", "score_rejected"))
        return turns, Given(texts, reward=scores), "a pair with a score for each response"
    p = _probability(row, "chosen_probs")
    rates: tuple[float, ...] = ()
    kind = "a pair with the chance that chosen wins"
    if "chosen_probs_win" in row or "chosen_probs_lose" in row:
        rates = tuple(_probability(row, f"chosen_probs_{side}") for side in ("win", "lose"))
        kind += " and the win rates of both"
    return turns, Given(texts, preference=((0.5, p), (1.0 - p, 0.5)), win_rate=rates), kind


def _side(value: Any, what: str) -> str | tuple[dict, ...]:
    """Return a response as text, or a conversation as checked turns."""
    if isinstance(value, str):
        return _transcript(value) or value
    if not isinstance(value, (list, dict)):
        raise ValueError(f"{what} must be a string or a list of turns, not {type(value).__name__}")
    return _checked_turns(value, what)


def _checked_turns(value: Any, what: str) -> tuple[dict, ...]:
    """Return turns in the one form; the content of the last may be empty, which is told later."""
    value = sources.without_columns(value, what)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{what} must be a list of turns with at least one")
    *first, last = value
    turns = [sources.read_turn(turn, f"{what} turn {n}") for n, turn in enumerate(first, 1)]
    empty = isinstance(last, dict) and last.get("content") == "" and last.get("role") == "assistant"
    turns.append(_answer("") if empty else sources.read_turn(last, f"{what} turn {len(value)}"))
    return tuple(turns)


def _answer(text: str) -> dict:
    return {"role": "assistant", "content": text}


def _prompt_turns(row: Mapping[str, Any]) -> tuple[dict, ...]:
    """Return the turns of a row's prompt."""
    value = sources.field_of(row, "prompt")
    said = _transcript(value) if isinstance(value, str) else ()
    return said or sources.read_messages(value, "prompt")


def _transcript(text: str) -> tuple[dict, ...]:
    """Return the turns of a "\\n\\nHuman: ...\\n\\nAssistant: ..." transcript; none if it is none.

    An "Assistant:" at the end without a text asks for the response and is no turn.
    """
    if not text.startswith("\n\nHuman:"):
        return ()
    parts = _SPEAKER.split(text)[1:]
    turns = [
        {"role": _ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    if len(turns) > 1 and turns[-1] == _answer(""):
        turns.pop()
    return tuple(turns)


def _response(side: str | tuple[dict, ...], prompt: tuple[dict, ...], name: str) -> str:
    """Return the text of a response, without the prompt where a conversation repeats it."""
    if isinstance(side, str):
        return side
    rest = side[len(prompt) :] if side[: len(prompt)] == prompt else side
    if len(rest) != 1 or rest[0]["role"] != "assistant":
        roles = ", ".join(turn["role"] for turn in rest) or "nothing"
        raise ValueError(
            f'"{name}" must be the prompt\'s turns and one turn of the assistant; after the prompt'
            f" it has: {roles}"
        )
    return rest[0]["content"]


def _common(
    chosen: str | tuple[dict, ...], rejected: str | tuple[dict, ...]
) -> tuple[tuple[dict, ...], tuple[str, str]]:
    """Part the prompt that two conversations, or two texts, have in common from the responses."""
    if isinstance(chosen, str) is not isinstance(rejected, str):
        raise ValueError('"chosen" and "rejected" must both be text or both be turns')
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if isinstance(chosen, str) and isinstance(rejected, str):
        while same and not chosen[same - 1].isspace():  # at the start of a word
            same -= 1
        prompt = chosen[:same].strip()
        if not prompt:
            raise ValueError('has no "prompt", and "chosen" and "rejected" begin differently')
        turns: tuple[dict, ...] = ({"role": "user", "content": prompt},)
        return turns, (chosen[same:], rejected[same:])
    assert not isinstance(chosen, str) and not isinstance(rejected, str)  # both, by now
    if same in (len(chosen), len(rejected)):
        same -= 1  # equal conversations: the last turn is the response
    turns = chosen[:same]
    if not turns:
        raise ValueError('has no "prompt", and "chosen" and "rejected" have no turn in common')
    return turns, _both(turns, chosen, rejected)


def _both(
    turns: tuple[dict, ...], chosen: str | tuple[dict, ...], rejected: str | tuple[dict, ...]
) -> tuple[str, str]:
    return _response(chosen, turns, "chosen"), _response(rejected, turns, "rejected")


# ---- groups and demonstrations -------------------------------------------------------------------


def _group(row: Mapping[str, Any]) -> Read:
    turns, responses = _prompt_turns(row), row["responses"]
    if not isinstance(responses, list) or len(responses) < 2:
        raise ValueError('"responses" must be a list of at least two')
    texts = tuple(
        _response(_side(side, f"response {n}"), turns, f"responses[{n - 1}]")
        for n, side in enumerate(responses, 1)
    )
    k = len(texts)
    if ("scores" in row) == ("preference" in row):
        raise ValueError('"responses" need one of "scores" (K numbers) and "preference" (K x K)')
    if "scores" in row:
        scores = _numbers(row["scores"], '"scores"', k)
        return turns, Given(texts, reward=scores), f"{k} responses with scores"
    matrix = row["preference"]
    if not isinstance(matrix, list) or len(matrix) != k:
        raise ValueError(f'"preference" must be {k} rows of {k} numbers, as there are responses')
    rows = tuple(_numbers(line, f'row {i} of "preference"', k) for i, line in enumerate(matrix, 1))
    _check_matrix(rows)
    kind = f"{k} responses with a {k} x {k} preference matrix"
    return turns, Given(texts, preference=rows), kind


def _check_matrix(rows: tuple[tuple[float, ...], ...]) -> None:
    for i, line in enumerate(rows):
        for j, p in enumerate(line):
            if not 0 <= p <= 1:
                raise ValueError(f'"preference" [{i}][{j}] is {p:g}, not in [0, 1]')
            if abs(p + rows[j][i] - 1) > MATRIX_TOLERANCE:
                raise ValueError(
                    f'"preference" [{i}][{j}] = {p:g} and [{j}][{i}] = {rows[j][i]:g} do not sum'
                    " to 1; the diagonal is 0.5"
                )


def _demonstration(row: Mapping[str, Any]) -> Read:
    kind = "one response, a demonstration"
    if "completion" not in row:
        turns = _checked_turns(row["messages"], '"messages"')
        if turns[-1]["role"] != "assistant":
            raise ValueError(
                f'"messages" must end with the assistant\'s turn, not {turns[-1]["role"]}'
            )
        return turns[:-1], Given((turns[-1]["content"],)), kind
    turns = _prompt_turns(row)
    side = _side(row["completion"], '"completion"')
    return turns, Given((_response(side, turns, "completion"),)), kind


# ---- numbers -------------------------------------------------------------------------------------


def _number(row: Mapping[str, Any], key: str) -> float:
    return _numbers([sources.field_of(row, key)], f'"{key}"', 1)[0]


def _probability(row: Mapping[str, Any], key: str) -> float:
    value = _number(row, key)
    if not 0 <= value <= 1:
        raise ValueError(f'"{key}" is {value:g}, not a probability')
    return value


def _numbers(values: Any, what: str, n: int) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != n:
        found = f"{len(values)}" if isinstance(values, list) else type(values).__name__
        raise ValueError(f"{what} must be {n} numbers, as there are responses; it has {found}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{what} holds {value!r:.40}, which is no number")
        if not math.isfinite(value):
            raise ValueError(f"{what} holds {value}, which is not finite")
    return tuple(map(float, values))
