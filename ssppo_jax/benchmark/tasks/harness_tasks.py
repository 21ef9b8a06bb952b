"""Any task of lm-evaluation-harness, on our sampler and log-probs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

from ml_collections import ConfigDict

from ssppo_jax.benchmark.answers import Model
from ssppo_jax.benchmark.contract import Benchmark, Whole
from ssppo_jax.benchmark.harness import MAX_GEN_TOKS, finite, make_lm
from ssppo_jax.config import expanded, non_negative
from ssppo_jax.errors import ConfigError
from ssppo_jax.evaluate import Estimate
from ssppo_jax.files import write_json
from ssppo_jax.types import Failed

Z = 1.959964  # of a 95% interval


def lm_eval(
    config: ConfigDict,
    *,
    tasks: str = "",
    include_path: str = "",
    num_fewshot: int = -1,
    limit: Annotated[int, non_negative] = 0,
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool = False,
) -> Benchmark:
    """Run tasks of lm-evaluation-harness; the harness samples, grades and aggregates.

    Intervals are the harness's standard errors times 1.96.

    Args:
        tasks: names of tasks or groups, separated by commas.
        include_path: a folder with task files of your own.
        num_fewshot: worked examples; -1 takes each task's own number.
        limit: the first so many documents of each task only; 0: all.
        apply_chat_template: ask through the model's chat template.
        fewshot_as_multiturn: with a chat template, each example is a turn and its answer.
    """
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise ConfigError("benchmark lm_eval: name its tasks: --config.benchmark.tasks=arc_easy")

    def whole(folder: Path) -> Whole:
        lm = make_lm(Model(config))
        harness = importlib.import_module("lm_eval")
        manager = importlib.import_module("lm_eval.tasks").TaskManager(
            include_path=str(expanded(include_path)) if include_path else None
        )
        unknown = [n for n in names if n not in manager.all_tasks]
        if unknown:
            raise ConfigError(
                f"lm_eval has no task {unknown[0]!r}; `lm_eval ls tasks` lists them, and"
                " --config.benchmark.include_path=DIR adds your own"
            )
        found = harness.simple_evaluate(
            model=lm,
            tasks=names,
            task_manager=manager,
            num_fewshot=None if num_fewshot < 0 else num_fewshot,
            limit=limit or None,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=fewshot_as_multiturn,
            random_seed=config.seed,
            bootstrap_iters=1000,
        )
        shown = ("results", "versions", "n-shot", "n-samples", "higher_is_better")
        kept = {key: found[key] for key in shown if key in found}
        write_json(folder / "official" / "results.json", kept)
        return Whole(_metrics(found), [], {}, _rows(found))

    def grade(*_: Any) -> Failed:
        return Failed("the harness grades")

    version = f"lm-evaluation-harness tasks {', '.join(names)}"
    return Benchmark(version, [], grade, headline="", whole=whole, chat=apply_chat_template,
        sampling={"sampling.max_new_tokens": MAX_GEN_TOKS})  # fmt: skip


def _metrics(found: dict[str, Any]) -> dict[str, Estimate]:
    """Return every metric of every task as `task/metric,filter`, with its interval."""
    metrics = {}
    for task, values in found["results"].items():
        count = found.get("n-samples", {}).get(task, {}).get("effective", 0)
        for name, value in values.items():
            metric, _, rest = name.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            mean, error = finite(value), finite(values.get(f"{metric}_stderr,{rest}"))
            low, high = mean - Z * error, mean + Z * error
            metrics[f"{task}/{name.removesuffix(',none')}"] = Estimate(mean, low, high, count)
    return metrics


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the graded documents, for grades.jsonl."""
    rows = []
    for task, samples in (found.get("samples") or {}).items():
        for sample in samples:
            grade = {
                metric: finite(sample[metric])
                for metric in sample.get("metrics", ())
                if isinstance(sample.get(metric), (int, float))
            }
            name = f"{task}/{sample['doc_id']}/{sample.get('filter', '')}"
            texts = [str(one) for one in sample.get("filtered_resps", ())]
            rows.append({"id": name, "answers": texts, "grade": grade})
    return rows


BENCHMARKS = {"lm_eval": lm_eval}
