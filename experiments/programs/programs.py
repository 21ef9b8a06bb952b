"""Programs that follow a list of steps, one statement a step or several in one.

A prompt lists twelve steps, each on the result of the one before it:

    b plus 3, c times 2, d minus 5, ...

A response is a function of a. A careful statement does one step. A hasty one does two, without
brackets. It is wrong where the first adds or takes away and the second multiplies:

    def f(a):
     b=a+3
     d=b*2-5
     ...
     return m

The reward is the package's oracle `code`: 1 if the program returns what the steps say for five
numbers, run in the sandbox, else 0."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np

from ssppo_jax.config import load_module

START = load_module(str(Path(__file__).parents[1] / "overconfidence/start.py"))
STEPS = 12
NAMES = string.ascii_lowercase[: STEPS + 1]
SIGNS = {"plus": "+", "minus": "-", "times": "*"}
FIXED = ("def f(a):", "\n ", "return ")  # parts of a program that are a token
ASKED = (0, 1, 2, 5, 11)  # the numbers of a test
Step = tuple[str, int]


def drawn(rng: np.random.Generator) -> list[Step]:
    """Draw the steps of a prompt: a word and a number from 2 to 9 each."""
    words = rng.choice(list(SIGNS), STEPS)
    return [(str(word), int(rng.integers(2, 10))) for word in words]


def prompt_of(steps: list[Step]) -> str:
    return ", ".join(f"{name} {word} {n}" for name, (word, n) in zip(NAMES[1:], steps, strict=True))


def test_of(steps: list[Step]) -> str:
    """Return the test of a prompt: what the steps make of five numbers."""
    wanted = list(ASKED)
    for word, n in steps:
        wanted = [{"plus": v + n, "minus": v - n, "times": v * n}[word] for v in wanted]
    return f"assert [f(a) for a in {ASKED}] == {wanted}"


def written(steps: list[Step], rng: np.random.Generator, hasty: float) -> str:
    """Write a program. A share `hasty` of the statements does two steps, without brackets."""
    lines, at = [], 0
    while at < len(steps):
        two = at + 1 < len(steps) and rng.random() < hasty
        done = steps[at : at + 1 + two]
        right = "".join(f"{SIGNS[word]}{n}" for word, n in done)
        lines.append(f"{NAMES[at + len(done)]}={NAMES[at]}{right}")
        at += len(done)
    return "\n ".join(["def f(a):", *lines, f"return {NAMES[-1]}"])


def rows(count: int, seed: int) -> list[dict]:
    """Return different prompts with their tests."""
    rng, found = np.random.default_rng(seed), {}
    while len(found) < count:
        steps = drawn(rng)
        found[prompt_of(steps)] = test_of(steps)
    return [{"prompt": text, "tests": test, "entry_point": "f"} for text, test in found.items()]


def demonstrations(count: int, seed: int, hasty: float) -> list[dict]:
    """Return prompts with programs, some of them hasty."""
    rng = np.random.default_rng(seed)
    each = (drawn(rng) for _ in range(count))
    return [{"prompt": prompt_of(s), "completion": written(s, rng, hasty)} for s in each]


def tokenizer():
    """Return a tokenizer whose tokens are names, digits, signs, words and the fixed parts of a
    program; what else a prompt has is none."""
    from tokenizers import Regex, decoders, pre_tokenizers

    made = START.word_level(
        [*START.SPECIALS, *FIXED, *SIGNS, *SIGNS.values(), *NAMES, "=", *"23456789"]
    )
    each = Regex(r"def f\(a\):|\n |return |plus|minus|times|[a-z]|[0-9]|[-+*=]")
    made.pre_tokenizer = pre_tokenizers.Split(each, behavior="removed", invert=True)
    made.decoder = decoders.Fuse()
    return START.wrapped(made, START.TEMPLATE_OF_SUMS)
