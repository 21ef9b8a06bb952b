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

from ssppo_jax.config import call_kwargs, flatten
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.data.prepare import prepare_heldout
from ssppo_jax.errors import ConfigError
from ssppo_jax.evaluate.estimates import (
    RESAMPLES,
    Estimate,
    bounded,
    cross_win_probability,
    intervals,
    length_controlled_win_rate,
    logged,
    mean_interval,
    shown,
    win_rate,
)
from ssppo_jax.evaluate.references import read_references
from ssppo_jax.files import write_json, write_records
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


class Change(NamedTuple):
    """Hold a reward, or a part of one, of two policies on the same prompts."""

    candidate: Estimate
    baseline: Estimate
    gain: Estimate  # of the difference, prompt by prompt


class Comparison(NamedTuple):
    """Hold an oracle's view of two policies' responses to the same prompts."""

    win_rate: Estimate
    length_controlled: Estimate  # the win rate at equal lengths
    rewards: dict[str, Change]  # "reward" and its parts; empty when the oracle gives preferences
    by_prompt: dict[str, float]  # id -> win rate; without the prompts that the oracle failed at
    parts: dict[str, Estimate]  # the win rate on each part of a mixture

    def values(self) -> dict[str, float]:
        """Return the win rates and the candidate's rewards with intervals, for the log."""
        found = logged(self.rates() | {name: c.candidate for name, c in self.rewards.items()})
        for name, rate in self.parts.items():
            own = logged({"win_rate": rate})
            found |= {f"mixture/{name}/{key}": value for key, value in own.items()}
        return found

    def result(self) -> dict[str, float]:
        """Return the same for result.json, with the rewards at the start and their gains."""
        rate = self.win_rate
        found = {"win_rate": rate.mean, "low": rate.low, "high": rate.high, "prompts": rate.n}
        found |= bounded("length_controlled_win_rate", self.length_controlled)
        for name, (candidate, baseline, gain) in self.rewards.items():
            found |= {name: candidate.mean, f"{name}_start": baseline.mean}
            found |= bounded(f"{name}_gain", gain)
        return found

    def rates(self) -> dict[str, Estimate]:
        """Return the win rate, and that at equal lengths, by the names of the log."""
        return {"win_rate": self.win_rate, "length_controlled_win_rate": self.length_controlled}

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
    groups = [a + b[:k] for a, b in zip(candidate, baseline, strict=True)]
    rows, verdict = _judged(config, oracle, encoded, groups)
    rng = np.random.default_rng(config.seed)
    interval = partial(mean_interval, rng=rng, resamples=RESAMPLES)
    preference = preference_of(verdict, temperature=config.oracle.reward_temperature)
    cross = cross_win_probability(preference, k)
    rate = win_rate(cross, rng=rng, resamples=RESAMPLES)
    length = np.array([[len(text) for text in groups[b]] for b in rows])
    longer = length[:, :k, None] - length[:, None, k:]  # [B,K,M] characters
    controlled = length_controlled_win_rate(preference[:, :k, k:], longer)
    changes = {}
    for name, x in _scores(verdict).items():
        own, other = x[:, :k].mean(1), x[:, k:].mean(1)
        changes[name] = Change(interval(own), interval(other), interval(own - other))
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


def evaluation_data(config: ConfigDict) -> dict[str, Any]:
    """Return the `data` node of held-out prompts: with `eval.system_prompt`, if there is one."""
    own = config.eval.system_prompt
    return dict(config.data) | ({"system_prompt": own} if own else {})


def rewards(
    config: ConfigDict,
    oracle: Oracle,
    encoded: Sequence[EncodedPrompt],
    texts: list[list[str]],  # B x K
) -> dict[str, Estimate]:
    """Estimate a policy's mean reward and its parts; nothing for preferences."""
    scores = _scores(_judged(config, oracle, encoded, texts)[1])
    return intervals({name: x.mean(1) for name, x in scores.items()}, seed=config.seed)


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
    oracles = {"": build_oracle(config)} | build_named(config.eval.oracles, ORACLES)
    for oracle in oracles.values():
        place_oracle(oracle, runtimes[0].mesh)
        oracle.check([e.prompt for e in encoded[0]])
    fixed = config.eval.reference_outputs
    reference = read_references(fixed, encoded[0]) if fixed else None
    sampled, start = {}, time.perf_counter()
    for name, runtime, prompts in zip(sides, runtimes, encoded, strict=True):
        heldout = HeldOut(runtime, prompts)
        sampled[name] = heldout.sample(
            runtime.load_params(),
            num_samples=config.eval.final_num_samples,
            baseline=name == "baseline",
            what=f"sample {name}",
        )
    opponents = {"": sampled["baseline"].texts}
    if reference is not None:
        opponents["reference"] = reference
    views = compare_all(config, oracles, encoded[0], sampled["candidate"].texts, opponents)
    main, own = views.found[""][""], config.oracle.name
    own = f"{own} of the config" if own in views.found else own
    result = {
        "candidate": candidate,
        "baseline": baseline,
        **_record(main),
        "by_prompt": main.by_prompt,
        "oracles": {label: _record(by[""]) for label, by in views.found.items() if label},
        "reference": {
            label or own: _record(by["reference"])
            for label, by in views.found.items()
            if "reference" in by
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
        rows = heldout.records(sampled["baseline"], "start", 0)
        rows += heldout.records(sampled["candidate"], "final", 0)
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
