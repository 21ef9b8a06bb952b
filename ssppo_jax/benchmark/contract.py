"""The contract of a benchmark: questions, how to sample, how to score, how to aggregate.

A benchmark is added by writing a factory: a function with keyword-only settings that returns a
`Benchmark`. The defaults of its keywords are their config defaults (`--config.benchmark.KEY`).

    def echo(*, word: str = "yes") -> Benchmark:
        def grade(question, answers, replies):
            return {"accuracy": float(word in answers[-1])}

        questions = [Question("1", (f"Say {word}.",))]
        return Benchmark("echo 1", questions, grade, headline="accuracy")

    BENCHMARKS = {"echo": echo}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import bootstrap

from ssppo_jax.evaluate.estimates import Estimate, mean_interval
from ssppo_jax.types import Failed

RESAMPLES = 2000  # of the bootstrap over questions
SEED = 0  # of all intervals: two results with equal grades have equal intervals
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Question(NamedTuple):
    """One question. Each of its `turns` is the user's, and follows the model's own answer to the
    one before."""

    id: str
    turns: tuple[str, ...]
    before: tuple[dict, ...] = ()  # chat turns in front: worked examples
    meta: Mapping[str, Any] = NOTHING
    temperature: float | None = None  # None: the benchmark's


class Request(NamedTuple):
    """What a judge is asked about the answers to a question."""

    messages: list[dict[str, str]]
    verdicts: tuple[str, ...]  # the replies that a local judge chooses among
    max_tokens: int
    temperature: float = 0.0
    logprobs: bool = False


class Reply(NamedTuple):
    """What a judge said."""

    text: str
    tokens: Any = None  # `logprobs.content` of an OpenAI reply
    chances: dict[str, float] | None = None  # of a local judge: the probability of each verdict


Grade = dict[str, float]  # metric -> value, NaN where the metric does not apply


class Graded(NamedTuple):
    """A question with its answers and their grade."""

    question: Question
    answers: list[str]
    tokens: list[int]  # sampled, of each turn
    replies: list[Reply]
    grade: Grade | Failed

    @property
    def values(self) -> Grade:
        """Return the grade; nothing where it failed."""
        return {} if isinstance(self.grade, Failed) else self.grade


Write = Callable[[Path, Sequence["Graded"], Mapping[str, str]], list[str] | None]


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a value as JSON; objects count as their text without an address."""

    def other(x: Any) -> Any:
        return x.tolist() if hasattr(x, "tolist") else re.sub(r" at 0x[0-9a-f]+", "", str(x))

    return hashlib.sha256(json.dumps(value, sort_keys=True, default=other).encode()).hexdigest()


def as_file_name(text: str) -> str:
    """Return a text with a dash for everything that may not stand in the name of a file."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)


def means(graded: Sequence[Graded]) -> dict[str, Estimate]:
    """Return the mean of every metric over the graded questions, with its interval over them."""
    grades = [one.values for one in graded if one.values]
    names = dict.fromkeys(name for grade in grades for name in grade)
    return {name: mean_of([grade.get(name, np.nan) for grade in grades]) for name in names}


def mean_of(values: Sequence[float] | np.ndarray) -> Estimate:
    """Return the mean of the values that are numbers, with its interval."""
    x = np.asarray([v for v in values if v == v], np.float64)
    if not x.size:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    return mean_interval(x, rng=np.random.default_rng(SEED), resamples=RESAMPLES)


def ratio_of(sums: Sequence[float], counts: Sequence[float]) -> Estimate:
    """Return sum(sums) / sum(counts) over questions, with its interval over questions (BCa)."""
    x, y = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    if not y.sum():
        return mean_of([])
    mean = float(x.sum() / y.sum())
    if len(x) == 1:
        return mean_of([mean])
    if np.allclose(x, mean * y):
        return Estimate(mean, mean, mean, len(x))
    found = bootstrap(
        (x, y),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        n_resamples=RESAMPLES,
        batch=256,
        rng=np.random.default_rng(SEED),
    )
    low, high = found.confidence_interval
    return Estimate(mean, float(low), float(high), len(x))


class Whole(NamedTuple):
    """What a benchmark that runs as a whole returns: it samples or aggregates by itself."""

    metrics: dict[str, Estimate]
    notes: list[str]
    model: dict[str, Any]  # source and digest, where they are not those of --model
    rows: list[dict[str, Any]]  # for grades.jsonl


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark, ready to run.

    Attributes:
        version: of questions and templates; two results compare only if theirs are equal.
        questions: all of them.
        grade: makes a grade of a question, the answers to its turns and the judge's replies; it
          returns `Failed` where a reply cannot be read.
        headline: the metric that tables sort by.
        paired: the value of a grade that paired tests compare; empty: as headline.
        requests: what a judge is asked; none where no judge is needed.
        aggregate: makes the result's metrics of all grades.
        sampling: keys of `sampling.*` and `data.*` that the benchmark sets; a user's own stand.
        stop: texts that end an answer, which is cut before the first of them.
        chat: the questions go through the model's chat template; false: as plain text.
        write_official: writes answers and judgements in the official tool's format to a folder;
          told the names of `model` and `judge`. It returns notes for the result, if any.
        whole: runs a benchmark that has no questions of this form, such as another package's
          tasks, or published judgements; it gets the result's folder.
        details: facts of the result file, such as the number of worked examples.
    """

    version: str
    questions: list[Question]
    grade: Callable[[Question, list[str], list[Reply]], Grade | Failed]
    headline: str
    paired: str = ""
    requests: Callable[[Question, list[str]], list[Request]] = lambda question, answers: []
    aggregate: Callable[[Sequence[Graded]], dict[str, Estimate]] = means
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stop: tuple[str, ...] = ()
    chat: bool = True
    write_official: Write = lambda folder, graded, names: None
    whole: Callable[[Path], Whole] | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
