"""What a response's code costs in the sandbox: python benchmarks/sandbox.py

The oracle `code` runs and tests small programs, 64 a call, one at a time. The time is that of a
core, of this process and of the processes that it waited for. The first of five calls is left out,
and the spread is over the others."""

from __future__ import annotations

import resource

import numpy as np

from ssppo_jax.oracles.code import code
from ssppo_jax.types import Prompt

CALLS, PROMPTS, SAMPLES = 5, 8, 8


def seconds() -> float:
    """Return the processor time of this process and of the processes that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    oracle, each = code(code_style="whole", workers=1), []
    tests = {"tests": ["assert [f(x) for x in (1, 2, 10)] == [5, 6, 14]"], "entry_point": "f"}
    prompts = [Prompt(str(b), ({"role": "user", "content": "f"},), tests) for b in range(PROMPTS)]
    for call in range(CALLS):
        first = call * SAMPLES
        texts = [
            f"def f(x):\n y = x + {n} - {n}\n return y + 4" for n in range(first, first + SAMPLES)
        ]
        before = seconds()
        verdict = oracle.ask(prompts, [texts] * PROMPTS)
        each.append((seconds() - before) / (PROMPTS * SAMPLES))
        assert verdict.reward is not None and verdict.reward.min() == 1.0
    kept = 1000 * np.array(each[1:])
    print(f"{np.median(kept):.1f} ms of a core a response ({kept.min():.1f} to {kept.max():.1f})")


if __name__ == "__main__":
    main()
