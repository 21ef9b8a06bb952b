"""Run the benchmark command: load the config, run or dry-run, print."""

from __future__ import annotations

import sys
from pathlib import Path

from ssppo_jax.benchmark import run, settings
from ssppo_jax.benchmark.contract import Benchmark
from ssppo_jax.distributed.stop import RunLock
from ssppo_jax.errors import ConfigError

INTERRUPTED = 75  # sysexits EX_TEMPFAIL: run the same command again


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
    if config.lora.rank:
        raise ConfigError("lora.rank: a benchmark runs an exported model; give RUN/policy")
    benchmark: Benchmark = settings.build(config, overrides)
    folder = Path(output or f"runs/{name}-{run.name_of(config.model.source)}")
    if dry:
        print(run.dry_run(config, benchmark, folder))
        return 0
    try:
        with RunLock(folder):
            result = run.run_benchmark(config, benchmark, folder)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on with what {folder} holds", file=sys.stderr)
        return INTERRUPTED
    print(run.table(result))
    print(f"written to {folder}")
    return 0
