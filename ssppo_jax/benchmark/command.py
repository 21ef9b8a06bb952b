"""Run the benchmark command: load the config, run or dry-run, print."""

from __future__ import annotations

from pathlib import Path

from ssppo_jax.benchmark import run, settings
from ssppo_jax.benchmark.contract import Benchmark


def benchmark_command(
    name: str,
    overrides: dict[str, str],
    *,
    model: str,
    judge: str,
    spec: str,
    output: str,
    dry: bool,
) -> int:
    """Run one benchmark and print its result; 0 if there is one."""
    config = settings.load(name, overrides, spec=spec, model=model, judge=judge)
    run.not_possible(config)
    benchmark: Benchmark = settings.build(config, overrides)
    folder = Path(output or f"runs/{name}-{run.name_of(config.model.source)}")
    if dry:
        print(run.dry_run(config, benchmark, folder))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    result = run.run_benchmark(config, benchmark, folder)
    print(run.table(result))
    print(f"written to {folder}")
    return 0
