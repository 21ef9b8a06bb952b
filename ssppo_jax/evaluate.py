"""Compare two policies on held-out prompts, as the training oracle and any others see them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import bootstrap

from ssppo_jax.config import call_kwargs, expanded, flatten
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.data.prepare import prepare_heldout
from ssppo_jax.data.sources import json_lines
from ssppo_jax.errors import ConfigError, DataError, UserError
from ssppo_jax.files import BYTE_ORDER_MARK, parse_json, write_json, write_records
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.links import preference_of
from ssppo_jax.oracles.named import build_named, read_named
from ssppo_jax.oracles.protocol import Oracle, drop_failed
from ssppo_jax.rollout.judge import build_oracle, judge, place_oracle
from ssppo_jax.rollout.sample import Responses, sample_prompts
from ssppo_jax.runs.folder import history_of
from ssppo_jax.runtime import (
    EVALUATION,
    Runtime,
    build_runtime,
    evaluation_params,
    with_source,
)
from ssppo_jax.sampling.sampler import CompiledSampler
from ssppo_jax.types import PyTree, Verdict

log = logging.getLogger(__name__)

RESAMPLES = 4000  # of the bootstrap


class Change(NamedTuple):
    """Hold a reward, or a part of one, of two policies on the same prompts."""

    candidate: Estimate
    baseline: Estimate
    gain: Estimate  # of the difference, prompt by prompt


class Comparison(NamedTuple):
    """Hold an oracle's view of two policies' responses to the same prompts."""

    win_rate: Estimate
    length_controlled: Estimate  # the win rate at equal lengths
    rewards: dict[
        str, Change
    ]  # "reward" and its named parts; empty when the oracle gives preferences
    by_prompt: dict[str, float]  # id -> win rate; without the prompts that the oracle failed at
    parts: dict[str, Estimate]  # the win rate on each part of a mixture

    def values(self) -> dict[str, float]:
        """Return the win rates and the candidate's rewards with intervals, for the log."""
        found = logged(self.rates() | {name: c.candidate for name, c in self.rewards.items()})
        for name, e in self.parts.items():
            at = f"mixture/{name}/win_rate"
            found |= {f"mixture/{name}/prompts": float(e.n), at: e.mean}
            found |= {f"{at}_low": e.low, f"{at}_high": e.high}
        return found

    def result(self) -> dict[str, float]:
        """Return the same for result.json, with the rewards at the start and their gains."""
        rate = self.win_rate
        found = {"win_rate": rate.mean, "low": rate.low, "high": rate.high, "prompts": rate.n}
        own = self.length_controlled
        found |= {
            "length_controlled_win_rate": own.mean,
            "length_controlled_win_rate_low": own.low,
            "length_controlled_win_rate_high": own.high,
        }
        for name, (candidate, baseline, gain) in self.rewards.items():
            found |= {
                name: candidate.mean,
                f"{name}_start": baseline.mean,
                f"{name}_gain": gain.mean,
            }
            found |= {f"{name}_gain_low": gain.low, f"{name}_gain_high": gain.high}
        return found

    def rates(self) -> dict[str, Estimate]:
        """Return the win rate, and that at equal lengths, by the names of the log."""
        return {
            "win_rate": self.win_rate,
            "length_controlled_win_rate": self.length_controlled,
        }

    def __str__(self) -> str:
        lines = [f"win rate {shown(self.win_rate)}"]
        lines += [
            f"{name} {shown(c.candidate)}, from {c.baseline.mean:.3f}"
            for name, c in self.rewards.items()
        ]
        return "; ".join(lines)


class Views(NamedTuple):
    """Hold a policy compared with opponents, in the eyes of the training oracle and of others."""

    # [oracle][opponent]: the training oracle is "", and the policy's start is ""
    found: dict[str, dict[str, Comparison]]

    def values(self) -> dict[str, float]:
        """Return all numbers for the log: [ORACLE/][OPPONENT/]NAME."""
        values: dict[str, float] = {}
        for oracle, views in self.found.items():
            for opponent, view in views.items():
                # Rewards are the policy's own, whoever the opponent is.
                own = view.values() if not opponent else logged(view.rates())
                start = prefix(oracle) + prefix(opponent)
                values |= {f"{start}{name}": value for name, value in own.items()}
        return values

    def result(self) -> dict[str, Any]:
        """Return the comparisons with the start for result.json, other oracles by their labels."""
        others = {label: views[""].result() for label, views in self.found.items() if label}
        return self.found[""][""].result() | ({"oracles": others} if others else {})

    def __str__(self) -> str:
        return "; ".join(
            f"by {oracle}: {views['']}" if oracle else str(views[""])
            for oracle, views in self.found.items()
        )


def prefix(label: str) -> str:
    """Return what stands before the names of an oracle or an opponent in the log."""
    return f"{label}/" if label else ""


def logged(estimates: dict[str, Estimate]) -> dict[str, float]:
    """Flatten estimates over the same prompts for the metric log, each with its interval."""
    values: dict[str, float] = {}
    for name, e in estimates.items():
        values |= {
            "prompts": float(e.n),
            name: e.mean,
            f"{name}_low": e.low,
            f"{name}_high": e.high,
        }
    return values


def shown(e: Estimate) -> str:
    """Write an estimate with its interval for people."""
    return f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]"


def intervals(rows: dict[str, np.ndarray], *, seed: int) -> dict[str, Estimate]:
    """Estimate the means of quantities measured on the same rows, [M] each."""
    rng = np.random.default_rng(seed)
    return {name: mean_interval(x, rng=rng, resamples=RESAMPLES) for name, x in rows.items()}


def compare(
    config: ConfigDict,
    oracle: Oracle,
    encoded: Sequence[EncodedPrompt],
    candidate: list[list[str]],  # B x K
    baseline: list[list[str]],  # B x M
) -> Comparison:
    """Estimate P(candidate beats baseline) over each prompt's pairs, and mean rewards.

    Of a baseline with more than K responses the first K count. All intervals are over prompts.
    """
    k = len(candidate[0])
    baseline = [group[:k] for group in baseline]
    groups = [a + b for a, b in zip(candidate, baseline, strict=True)]
    rows, verdict = _judged(config, oracle, encoded, groups)
    rng = np.random.default_rng(config.seed)
    preference = preference_of(verdict, temperature=config.oracle.reward_temperature)
    cross = cross_win_probability(preference, k)
    rate = win_rate(cross, rng=rng, resamples=RESAMPLES)
    length = np.array([[len(text) for text in groups[b]] for b in rows])
    longer = length[:, :k, None] - length[:, None, k:]  # [B,K,M] characters
    controlled = length_controlled_win_rate(preference[:, :k, k:], longer)
    changes = {
        name: _change(x[:, :k].mean(1), x[:, k:].mean(1), rng)
        for name, x in _scores(verdict).items()
    }
    names = np.array([encoded[b].prompt.meta.get("mixture", "") for b in rows])
    parts = {
        name: win_rate(cross[names == name], rng=rng, resamples=RESAMPLES)
        for name in sorted(set(names.tolist()) - {""})
    }
    by_prompt = {encoded[b].prompt.id: float(x) for b, x in zip(rows, cross, strict=True)}
    return Comparison(rate, controlled, changes, by_prompt, parts)


def compare_all(
    config: ConfigDict,
    oracles: dict[str, Oracle],  # the training oracle is ""
    encoded: Sequence[EncodedPrompt],
    candidate: list[list[str]],  # B x K
    opponents: dict[str, list[list[str]]],  # B x M each; the start is ""
) -> Views:
    """Compare a policy with every opponent in the eyes of every oracle, on the same responses."""
    return Views(
        {
            label: {
                opponent: compare(config, oracle, encoded, candidate, texts)
                for opponent, texts in opponents.items()
            }
            for label, oracle in oracles.items()
        }
    )


def build_second_opinions(config: ConfigDict) -> dict[str, Oracle]:
    """Return the oracles of `eval.oracles` by their labels.

    Raises:
        ConfigError: see `oracles.named`.
    """
    return build_named(config.eval.oracles, ORACLES)


def evaluation_data(config: ConfigDict) -> dict[str, Any]:
    """Return the `data` node of held-out prompts: with `eval.system_prompt`, if there is one."""
    own = config.eval.system_prompt
    return dict(config.data) | ({"system_prompt": own} if own else {})


def read_references(path: str, encoded: Sequence[EncodedPrompt]) -> list[list[str]]:  # B x 1
    """Read fixed outputs that the policy is compared with, one for each held-out prompt.

    The file is JSONL, or a JSON list as AlpacaEval publishes outputs. A row has the prompt's text
    or id (`prompt`, `instruction`, `prompt_id`) and the text (`output`, `response`). The first row
    of a prompt counts.

    Raises:
        DataError: the file cannot be read, or held-out prompts have no output.
    """
    file = expanded(path)
    if not file.is_file():
        raise DataError(f"eval.reference_outputs={path!r}: there is no such file")
    text = file.read_bytes().removeprefix(BYTE_ORDER_MARK)
    whole = text.lstrip()[:1] == b"["
    rows = parse_json(text, file) if whole else [row for _, row in json_lines(path)]
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        asked = (
            [row[key] for key in REFERENCE_PROMPT if key in row] if isinstance(row, dict) else []
        )
        said = [row[key] for key in REFERENCE_OUTPUT if key in row] if asked else []
        if not said or not isinstance(said[0], str):
            raise DataError(
                f"{file}: row {number} must have one of {', '.join(REFERENCE_PROMPT)} and a text"
                f" as {' or '.join(REFERENCE_OUTPUT)}"
            )
        for name in map(str, asked):
            found.setdefault(name, said[0])
    texts = [found.get(e.prompt.id, found.get(e.prompt.text)) for e in encoded]
    missing = [e.prompt.text for e, text in zip(encoded, texts, strict=True) if text is None]
    if missing:
        raise DataError(
            f"{file} has no output for {len(missing)} of {len(encoded)} held-out prompts, such as"
            f" {missing[0][:80]!r}; add them"
        )
    return [[text] for text in texts if text is not None]


REFERENCE_PROMPT = ("prompt_id", "prompt", "instruction")
REFERENCE_OUTPUT = ("output", "response")


def rewards(
    config: ConfigDict,
    oracle: Oracle,
    encoded: Sequence[EncodedPrompt],
    texts: list[list[str]],  # B x K
) -> dict[str, Estimate]:
    """Estimate a policy's mean reward and its parts; nothing for preferences."""
    scores = _scores(_judged(config, oracle, encoded, texts)[1])
    rng = np.random.default_rng(config.seed)
    return {
        name: mean_interval(x.mean(1), rng=rng, resamples=RESAMPLES) for name, x in scores.items()
    }


def _judged(
    config: ConfigDict, oracle: Oracle, encoded: Sequence[EncodedPrompt], groups: list[list[str]]
) -> tuple[np.ndarray, Verdict]:
    """Return which held-out prompts the oracle could judge, and its verdict on them."""
    verdict = judge(oracle, encoded, groups, journal=None, identity="")
    kept = drop_failed(verdict, max_failed_fraction=config.oracle.max_failed_fraction)
    if kept.dropped:
        log.warning(
            "the oracle failed on %d of %d held-out prompts: %s",
            kept.dropped,
            len(encoded),
            kept.reasons,
        )
    return kept.rows, kept.verdict


def _scores(verdict: Verdict) -> dict[str, np.ndarray]:  # [B,K] each
    return {} if verdict.reward is None else {"reward": verdict.reward} | (verdict.parts or {})


def _change(
    candidate: np.ndarray, baseline: np.ndarray, rng: np.random.Generator
) -> Change:  # [B] each
    interval = partial(mean_interval, rng=rng, resamples=RESAMPLES)
    return Change(interval(candidate), interval(baseline), interval(candidate - baseline))


class HeldOut:
    """Sample held-out prompts; candidates and baselines use different random streams."""

    def __init__(self, runtime: Runtime, encoded: list[EncodedPrompt]):
        self.runtime, self.encoded = runtime, encoded
        self._samplers: dict[int, CompiledSampler] = {}

    def sample(
        self,
        params: PyTree,
        *,
        num_samples: int,
        baseline: bool,
        what: str,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Responses:
        if num_samples not in self._samplers:
            self._samplers[num_samples] = self.runtime.make_sampler(
                num_samples=num_samples, sampling=evaluation_params(self.runtime.config)
            )
        key = self.runtime.key(EVALUATION, int(baseline))
        sampler = self._samplers[num_samples]
        return sample_prompts(
            self.runtime, sampler, params, self.encoded, key, stopped=stopped, what=what
        )

    def records(self, sampled: Responses, stage: str, iteration: int) -> list[dict]:
        """Return held-out texts for people to read, one record per prompt and sample."""
        return [
            {
                "iteration": iteration,
                "stage": stage,
                "prompt_id": e.prompt.id,
                "prompt": e.prompt.text,
                "sample": i,
                "response": text,
            }
            for e, group in zip(self.encoded, sampled.texts, strict=True)
            for i, text in enumerate(group)
        ]


def evaluate(config: ConfigDict, *, candidate: str, baseline: str, output: Path | None) -> dict:
    """Load two policies, sample both on the held-out prompts and compare them.

    `candidate` and `baseline` are anything `model.source` may be: embedded:NAME, a folder, a repo
    id, a .gguf file. Each brings its own architecture, tokenizer and chat template, and the
    config's `model.source` is not read. Prompts that a run trained either on are left out, and
    what the run held out comes first (`history_of`). The result and all texts are written to
    `output`.

    Raises:
      ConfigError: `output` is a run's folder, whose samples would be replaced.
    """
    if output is not None and (output / "metrics.jsonl").is_file():
        raise ConfigError(
            f"--output={output} is a run's folder, whose samples.jsonl would be replaced; give"
            " another"
        )
    sides = {"baseline": baseline, "candidate": candidate}
    runtimes = [build_runtime(with_source(config, source)) for source in sides.values()]
    encoded, account = prepare_heldout(
        evaluation_data(config),
        [runtime.tokenizer for runtime in runtimes],
        seed=config.seed,
        history=history_of(candidate, baseline),
    )
    oracles = {"": build_oracle(config)} | build_second_opinions(config)
    for oracle in oracles.values():
        place_oracle(oracle, runtimes[0].mesh)
        oracle.check([e.prompt for e in encoded[0]])
    reference = config.eval.reference_outputs
    opponents = {"reference": read_references(reference, encoded[0])} if reference else {}
    texts, start = {}, time.perf_counter()
    for name, runtime, prompts in zip(sides, runtimes, encoded, strict=True):
        params = runtime.load_params()
        heldout = HeldOut(runtime, prompts)
        texts[name] = heldout.sample(
            params,
            num_samples=config.eval.final_num_samples,
            baseline=name == "baseline",
            what=f"sample {name}",
        )
        del params
    sides_of = {"": texts["baseline"].texts} | opponents
    views = compare_all(config, oracles, encoded[0], texts["candidate"].texts, sides_of)
    result = {
        "candidate": candidate,
        "baseline": baseline,
        **_record(views.found[""][""]),
        "by_prompt": views.found[""][""].by_prompt,
        "oracles": {label: _record(by[""]) for label, by in views.found.items() if label},
        "reference": {
            label or config.oracle.name: _record(by["reference"])
            for label, by in views.found.items()
            if reference
        },
        "summary": str(views),
        "oracle": {"name": config.oracle.name, **call_kwargs(ORACLES, config.oracle)},
        "second_opinions": [one._asdict() for one in read_named(config.eval.oracles, ORACLES)],
        "samples_per_prompt": config.eval.final_num_samples,
        "prompts": account,
        "seconds": time.perf_counter() - start,
        "config": flatten(config),
    }
    if output is not None:
        write_json(output / "evaluation.json", result)
        rows = heldout.records(texts["baseline"], "start", 0) + heldout.records(
            texts["candidate"], "final", 0
        )
        write_records(output / "samples.jsonl", rows)
    return result


def _record(view: Comparison) -> dict[str, Any]:
    """Return a comparison as it stands in evaluation.json."""
    rates = {name: estimate._asdict() for name, estimate in view.rates().items()}
    return rates | {
        "rewards": {
            name: {part: e._asdict() for part, e in change._asdict().items()}
            for name, change in view.rewards.items()
        }
    }


class Estimate(NamedTuple):
    """Hold a mean over prompts and its 95% interval."""

    mean: float
    low: float
    high: float
    n: int  # prompts


def win_rate(
    p: np.ndarray,  # [B] win probability of the candidate over the baseline, one per prompt
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
) -> Estimate:
    """Return the mean of p with its 95% interval (`mean_interval`), clipped to [0, 1].

    Raises:
        UserError: p is empty, not one-dimensional, or not in [0, 1].
    """
    p = np.asarray(p, np.float64)
    if p.ndim != 1 or p.size == 0:
        raise UserError(
            f"a win rate needs one probability for each of at least one prompt, got shape {p.shape}"
        )
    if not ((p >= 0) & (p <= 1)).all():  # NaN is in neither
        raise UserError(
            "win probabilities must lie in [0, 1]; drop the prompts the oracle failed on first"
        )
    return mean_interval(p, rng=rng, resamples=resamples, bounds=(0.0, 1.0))


def mean_interval(
    x: np.ndarray,  # [B] one number per prompt
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    bounds: tuple[float, float] = (-np.inf, np.inf),  # where the mean must lie
) -> Estimate:
    """Return the mean of x with its 95% bootstrap interval over prompts.

    The interval is bias-corrected and accelerated (BCa, Efron 1987), so small samples need no
    widening by hand. Prompts are resampled whole. The K samples of one prompt are alike, so
    counting each as an observation would make the interval too narrow.

    With skewed win rates it covers the true mean about 95% of the time from 25 prompts on. It
    covers 91% with 10 prompts and 84% with 5. One prompt alone gives the bounds. Prompts with
    equal numbers give an interval of width 0.
    """
    x = np.asarray(x, np.float64)
    n, mean = x.size, float(x.mean())
    if n == 1:
        return Estimate(mean, *bounds, 1)
    if np.allclose(x, x[0], rtol=1e-12, atol=1e-12):  # BCa is undefined for equal numbers
        return Estimate(mean, mean, mean, n)
    # In batches: a resample and a jackknife of all prompts at once would need B x B numbers.
    found = bootstrap((x,), np.mean, n_resamples=resamples, batch=256, rng=rng)
    low, high = np.clip(found.confidence_interval, *bounds)
    return Estimate(mean, float(low), float(high), n)


def cross_win_probability(
    # [B,K+M,K+M] P(i > j): the candidate's K responses first, then the baseline's M
    preference: np.ndarray,
    k: int,
) -> np.ndarray:  # [B] float64
    """Average P over the K x M pairs of two policies' responses to the same prompt, [B].

    Raises:
        UserError: the matrix is not [B,k+m,k+m] with m of 1 or more.
    """
    preference = np.asarray(preference)
    square = preference.ndim == 3 and preference.shape[1] == preference.shape[2]
    if k < 1 or not square or preference.shape[1] <= k:
        raise UserError(
            f"expected preferences of shape [B, {k}+m, {k}+m] for k = {k}, got {preference.shape}"
        )
    return preference[:, :k, k:].astype(np.float64).mean((1, 2))


def length_controlled_win_rate(
    p: np.ndarray,  # [B,...] win probabilities of the candidate, the pairs of a prompt in a row
    longer: np.ndarray,  # of the same shape: characters that the candidate's response has more
) -> Estimate:
    """Return the win rate that a logistic model predicts for responses of equal length.

        logit P(win) = theta + phi tanh(longer / std(longer))        rate = sigmoid(theta)

    It is the model `length_controlled_minimal` of AlpacaEval (Dubois et al. 2024, arXiv 2404.04475,
    section 3, without the instructions' difficulties), by maximum likelihood of the probabilities.
    AlpacaEval's own fit has an L1 penalty that cross-validation chooses. |theta| is at most 20, so
    that a rate of 0 or 1 has a fit. Where all lengths are equal, it is the plain mean.

    The 95% interval is sigmoid(theta +- 1.96 s), with the sandwich estimate of the error s of theta
    over prompts: the pairs of one prompt are alike. One prompt alone gives [0, 1].

    Raises:
        UserError: the shapes differ or are empty, or a probability is not in [0, 1].
    """
    p, longer = np.asarray(p, np.float64), np.asarray(longer, np.float64)
    if p.shape != longer.shape or not p.size:
        raise UserError(
            f"win probabilities of shape {p.shape} and lengths of shape {longer.shape}: each pair"
            " has one of both"
        )
    if not ((p >= 0) & (p <= 1)).all():
        raise UserError("win probabilities must lie in [0, 1]; drop what the oracle failed on")
    n, p, longer = p.shape[0], p.reshape(p.shape[0], -1), longer.reshape(p.shape[0], -1)
    spread = longer.std(ddof=1) if longer.size > 1 else 0.0
    features = [np.ones_like(p)] + ([np.tanh(longer / spread)] if spread > 0 else [])
    x = np.stack(features, -1)  # [B,pairs,1 or 2]

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ w
        return float((np.logaddexp(0, z) - p * z).mean()), ((expit(z) - p)[..., None] * x).mean(
            (0, 1)
        )

    start, bounds = np.zeros(x.shape[-1]), [(-20.0, 20.0)] * x.shape[-1]
    tight = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}
    w = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=tight).x
    rate = float(expit(w[0]))
    if n == 1:
        return Estimate(rate, 0.0, 1.0, 1)
    q = expit(x @ w)
    bread = np.linalg.pinv(np.einsum("bi,bid,bie->de", q * (1 - q), x, x))
    scores = np.einsum("bi,bid->bd", p - q, x)  # summed within a prompt
    error = np.sqrt((bread @ (scores.T @ scores) @ bread)[0, 0] * n / (n - 1))
    return Estimate(rate, float(expit(w[0] - 1.96 * error)), float(expit(w[0] + 1.96 * error)), n)
