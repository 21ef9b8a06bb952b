"""Tell a run's story for the first screen: the question, who judged, and what to doubt."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ssppo_jax.runs.report.record import Run, finite, held_out

# Oracles that are functions of the text. They stand for no human preference.
KNOWN = {"sentiment", "sentiment_overconfident", "length", "relevance", "keywords"}
OPPONENTS = ("previous", "reference")  # whose win rates are none over the start
LENGTH_MATTERS = 0.05  # raw win rate less that at equal length, from which the page warns


class Judge(NamedTuple):
    """One oracle's view of the trained policy against its start."""

    name: str
    trained_on: bool
    rate: float
    low: float | None
    high: float | None
    controlled: float | None  # the win rate at equal length
    reward: str  # "0.578 at the start, 0.748 after"; empty for preferences

    @property
    def shown(self) -> str:
        """Return the win rate and its interval in percent."""
        if self.low is None or self.high is None:
            return f"{self.rate:.0%}"
        return f"{self.rate:.0%} ({self.low:.0%} to {self.high:.0%})"

    @property
    def says(self) -> str:
        """Return better, worse, or unclear."""
        if self.low is not None and self.low > 0.5:
            return "better"
        return "worse" if self.high is not None and self.high < 0.5 else "unclear"

    @property
    def bar(self) -> dict[str, float]:
        """Return where the interval and the rate stand, in percent of the bar's width."""
        low = self.rate if self.low is None else self.low
        high = self.rate if self.high is None else self.high
        return {"left": 100 * low, "width": 100 * (high - low), "at": 100 * self.rate}


class Story(NamedTuple):
    """What the first screen says."""

    question: str
    answer: str
    judges: list[Judge]
    doubts: list[str]


def tell(run: Run) -> Story:
    """Return the story of a run, as far as its records go."""
    config = run.config if isinstance(run.config, dict) else {}
    if run.given:
        return _of_given(run, config)
    judges = _judges(run, config)
    return Story(_question(run, config), _answer(judges), judges, _doubts(run, config, judges))


def _of_given(run: Run, config: dict) -> Story:
    """Return the story of a run on given responses: its held-out rows, before and after."""
    source, loss = config.get("model.source"), config.get("loss.name")
    who, how = source if isinstance(source, str) else "the model", f" with {loss}" if loss else ""
    question = (
        f"Does {who} learn from the given responses{how}, on rows that it was not trained on?"
    )
    said = []
    for name, rows in held_out(run.metrics).items():
        if name not in ("loss", "rewards/accuracies"):
            continue
        first, last = rows.iloc[0], rows.iloc[-1]
        before = f"{first.value:.3f} → " if name == "loss" and len(rows) > 1 else ""
        said.append(f"{name}: {before}{last.value:.3f} ({last.low:.3f} to {last.high:.3f}).")
    if not said:
        return Story(question, "Not known yet: no held-out rows were evaluated.", [], [])
    doubt = (
        "Held-out loss and accuracy say how likely the given responses are. They do not say that"
        " what the policy writes is better: sample from it (generate), or let an oracle judge it"
        " (evaluate)."
    )
    return Story(question, "Held-out " + " ".join(said), [], [doubt])


def _question(run: Run, config: dict) -> str:
    source, loss = config.get("model.source"), config.get("loss.name")
    who = f"Does {source}" if isinstance(source, str) else "Does the trained policy"
    how = f", trained by {loss}," if isinstance(loss, str) else ""
    count = finite(run.result.get("prompts"))
    where = f" on {count:g} prompts" if count else " on prompts"
    return f"{who}{how} answer better than its start did{where} that it was not trained on?"


def _answer(judges: list[Judge]) -> str:
    """Return what each judge says in a few words."""
    if not judges:
        return "Not known yet: no evaluation was recorded."
    words = {"better": "better", "worse": "worse", "unclear": "no clear difference"}
    said = [
        f"By the oracle that trained it: {words[judge.says]}."
        if judge.trained_on
        else f"By {judge.name}, which training did not see: {words[judge.says]}."
        for judge in judges
    ]
    return " ".join(said) + ("" if len(judges) > 1 else " No other oracle was asked.")


def _judges(run: Run, config: dict) -> list[Judge]:
    """Return the training oracle and the others, from the result or else the last evaluation."""
    numbers = run.result if finite(run.result.get("win_rate")) is not None else _last(run)
    own = _judge(_trained_by(config), True, numbers)
    others = numbers.get("oracles")
    found = others.items() if isinstance(others, dict) else ()
    made = [own] + [_judge(str(label), False, view) for label, view in found]
    return [judge for judge in made if judge is not None]


def _judge(name: str, trained_on: bool, numbers: Any) -> Judge | None:
    view = numbers if isinstance(numbers, dict) else {}
    rate = finite(view.get("win_rate"))
    if rate is None:
        return None
    before, after = finite(view.get("reward_start")), finite(view.get("reward"))
    reward = "" if before is None or after is None else f"{before:.3f} → {after:.3f}"
    low, high, controlled = (
        finite(view.get(key)) for key in ("low", "high", "length_controlled_win_rate")
    )
    return Judge(name, trained_on, rate, low, high, controlled, reward)


def _last(run: Run) -> dict[str, Any]:
    """Return the last evaluation's win rates in the form of result.json."""
    found: dict[str, Any] = {"oracles": {}}
    for name, rows in held_out(run.metrics).items():
        *label, key = name.split("/")
        if key != "win_rate" or {"mixture", *OPPONENTS} & set(label):
            continue
        value, low, high = rows.iloc[-1][["value", "low", "high"]]
        view = {"win_rate": value, "low": low, "high": high}
        if label:
            found["oracles"]["/".join(label)] = view
        else:
            found |= view
    return found


def _trained_by(config: dict) -> str:
    """Return the training oracle's name; of a combination, those of its members."""
    name = config.get("oracle.name")
    try:
        members = json.loads(config.get("oracle.members", "[]")) if name == "combine" else []
        parts = [str(member["oracle"]) for member in members]
    except (TypeError, ValueError, KeyError):
        parts = []
    return " + ".join(parts) or str(name or "the training oracle")


def _doubts(run: Run, config: dict, judges: list[Judge]) -> list[str]:
    """Return what a reader should hold against these numbers."""
    doubts = []
    named = {part for judge in judges for part in judge.name.split(" + ")}
    known = sorted(named & KNOWN)
    if known:
        verb = "are functions" if len(known) > 1 else "is a function"
        doubts.append(f"{', '.join(known)} {verb} of the text, and no human preference.")
    own = [judge for judge in judges if judge.trained_on]
    others = [judge for judge in judges if not judge.trained_on]
    if own and not others:
        doubts.append(
            "Only the oracle that trained the policy judged it. It does not see what the policy"
            " gave up to please it; eval.oracles asks others."
        )
    doubts += [
        f"{judge.name} prefers the start. The policy may please its own oracle at the cost of what"
        " that one does not measure; read the samples."
        for judge in others
        if judge.says == "worse"
    ]
    for judge in judges:
        if judge.controlled is not None and judge.rate - judge.controlled > LENGTH_MATTERS:
            doubts.append(
                f"Length explains a part: at equal length {judge.name} gives"
                f" {judge.controlled:.0%}, not {judge.rate:.0%}."
            )
    if finite(run.result.get("best_iteration")) is not None:
        doubts.append(
            f"policy_best was chosen by {config.get('train.select_by', 'these evaluations')} on"
            " these same prompts, so its number is too high; evaluate it on others."
        )
    if judges:
        doubts.append(
            "The intervals know of prompts only. Another seed or machine can end further away than"
            " they reach."
        )
    return doubts
