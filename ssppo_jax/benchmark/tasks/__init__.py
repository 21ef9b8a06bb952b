"""Benchmarks: what papers report. `BENCHMARKS` maps a name to a factory of `Benchmark`.

Every module of this package with a module-level table `BENCHMARKS` is found here, so a benchmark is
added by writing one file. `benchmark.contract` shows one."""

from ssppo_jax.config import discover

BENCHMARKS = discover(__path__, __name__, "BENCHMARKS")
