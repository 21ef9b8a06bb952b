"""Make prompts with exact answers by reasoning-gym's generators.

An item is a pure function of (task, settings, seed, index). A prompt carries those and not the
generator's entry, which JSON cannot always hold.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from ssppo_jax.config.nodes import nearest
from ssppo_jax.errors import ConfigError, UserError
from ssppo_jax.types import Prompt

_log = logging.getLogger(__name__)


def reasoning_gym(
    *,
    task: str = "chain_sum",
    size: int = 1000,
    task_seed: int = 0,
    settings: str = "",
    instruction: str = "",
) -> list[Prompt]:
    """Make questions of reasoning-gym (https://github.com/open-thought/reasoning-gym) with exact
    answers.

    A question that comes twice is kept once; how many went is logged.

    Args:
        task: a generator's name, or several with commas, mixed in equal parts.
        size: questions generated in all, repeats included.
        task_seed: of the generators; another seed makes other questions.
        settings: the generator's own options as a JSON object, e.g. {"max_terms": 2}; of several
            tasks one object each, by name.
        instruction: text put under each question, e.g. Give only the number.

    Raises:
        ConfigError: unknown task or option, or a value the generator refuses.
    """
    names = [name.strip() for name in task.split(",") if name.strip()]
    options = _options(names, settings)
    prompts: dict[str, Prompt] = {}
    for n, name in enumerate(names):
        count = size // len(names) + (n < size % len(names))
        own = json.dumps(options[name], sort_keys=True)
        for prompt in _generated(name, own, task_seed, count, instruction):
            prompts.setdefault(prompt.text, prompt)
    if not prompts:
        raise ConfigError(
            f"data source reasoning_gym: task={task!r}, size={size} makes no question"
        )
    if len(prompts) < size:
        _log.warning(
            "reasoning_gym: %d of %d questions repeat another and were left out",
            size - len(prompts),
            size,
        )
    return list(prompts.values())


def _generated(
    task: str, settings: str, seed: int, count: int, instruction: str
) -> Iterator[Prompt]:
    """Generate a task's questions, repeats included.

    Tasks that accept whatever works (rush_hour) may give no answer.
    """
    for index in range(count):
        where = {"task": task, "settings": settings, "seed": seed, "size": count, "index": index}
        try:
            entry = _entry(generator(task, settings, seed, count), index)
        except UserError:
            raise
        except Exception as error:  # of options that a task does not check when it is made
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"reasoning_gym task {task}, settings {settings}, question {index}: {reason}"
            ) from error
        meta: dict[str, Any] = {"reasoning_gym": where}
        if entry["answer"] is not None:
            meta["answer"] = str(entry["answer"])
        question = entry["question"] + ("\n" + instruction if instruction else "")
        turns, canonical = ({"role": "user", "content": question},), _canonical(task, entry)
        yield Prompt(f"{task}-{seed}-{index}", turns, meta, canonical)


def _canonical(task: str, entry: dict) -> str:
    """Return a form that is equal for questions with the same operands in another order.

    It is empty for tasks without such twins.
    """
    if task not in CANONICAL:
        return ""
    kind, form = CANONICAL[task]
    try:
        return json.dumps([kind, form(entry.get("metadata", {}))])
    except (KeyError, SyntaxError):  # of another version of the library: the text has to do
        return ""


def arithmetic(expression: str) -> str:
    """Return an expression with the operands of its sums and products sorted.

    "3 + 5" and "5 + 3" give the same, and so do "2 - -1" and "1 + 2".

    Raises:
        SyntaxError: it is no Python expression.
    """
    return _sum(ast.parse(expression, mode="eval").body)


def _sum(node: ast.expr) -> str:
    terms = sorted(_terms(node, 1))
    return "(" + " ".join("-+"[sign > 0] + term for sign, term in terms) + ")"


def _terms(node: ast.expr, sign: int) -> list[tuple[int, str]]:
    """Return the signed terms of a sum."""
    match node:
        case ast.BinOp(left, ast.Add(), right):
            return _terms(left, sign) + _terms(right, sign)
        case ast.BinOp(left, ast.Sub(), right):
            return _terms(left, sign) + _terms(right, -sign)
        case ast.UnaryOp(ast.USub(), operand):
            return _terms(operand, -sign)
        case ast.BinOp(_, ast.Mult(), _):
            return [(sign, "*".join(sorted(_factors(node))))]
        case ast.BinOp(left, operator, right):
            return [(sign, f"({_sum(left)} {type(operator).__name__} {_sum(right)})")]
    return [(sign, ast.unparse(node))]


def _factors(node: ast.expr) -> list[str]:
    match node:
        case ast.BinOp(left, ast.Mult(), right):
            return _factors(left) + _factors(right)
    return [_sum(node)]


# Tasks whose questions have twins: the kind of question, and the canonical form of its operands.
CANONICAL: dict[str, tuple[str, Callable[[dict], Any]]] = {
    **dict.fromkeys(
        ("basic_arithmetic", "chain_sum", "decimal_chain_sum", "products"),
        ("value", lambda found: arithmetic(found["expression"])),
    ),
    "bitwise_arithmetic": ("hexadecimal", lambda found: arithmetic(found["problem"])),
    "polynomial_multiplication": ("polynomial", lambda found: arithmetic(found["polynomial_expr"])),
    "complex_arithmetic": (
        "complex",
        lambda found: [
            found["operation"],
            *(sorted if found["operation"] in "+*" else list)([found["num1"], found["num2"]]),
        ],
    ),
    "gcd": ("gcd", lambda found: sorted(found["numbers"])),
    "lcm": ("lcm", lambda found: sorted(found["numbers"])),
    "countdown": ("countdown", lambda found: [found["target"], *sorted(found["numbers"])]),
    "leg_counting": ("legs", lambda found: sorted(found["animals"].items())),
}


def entry_of(prompt: Prompt) -> dict:
    """Return the generator's entry of a prompt of this source, as its task's `score_answer` wants
    it.
    """
    where = prompt.meta["reasoning_gym"]
    made = generator(where["task"], where["settings"], where["seed"], where["size"])
    return _entry(made, where["index"])


@functools.lru_cache(maxsize=65536)
def _entry(made: Any, index: int) -> dict:
    return made[index]


@functools.cache
def generator(task: str, settings: str, seed: int, size: int) -> Any:
    """Return the data set of a task."""
    made_by = library()
    tasks = made_by.factory.DATASETS
    if task not in tasks:
        raise ConfigError(
            f"reasoning_gym has no task {task!r}; {nearest(task, tasks)}there are:"
            f" {', '.join(sorted(tasks))}"
        )
    parameters, options = inspect.signature(tasks[task][1]).parameters, json.loads(settings)
    allowed = [name for name in parameters if name not in ("seed", "size")]
    for name in options:
        if name not in allowed:
            raise ConfigError(
                f"reasoning_gym task {task} takes no {name!r}; it takes: {', '.join(allowed)}"
            )
    try:
        return made_by.create_dataset(task, seed=seed, size=size, **options)
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"reasoning_gym task {task}, settings {settings}: {error}") from error


def library() -> ModuleType:
    """Import reasoning_gym, which takes a second."""
    try:
        importlib.import_module("pycosat")
    except ImportError:
        missing = ModuleType("pycosat")
        setattr(missing, "__getattr__", _no_pycosat)  # noqa: B010  a module's, asked for any name
        sys.modules["pycosat"] = missing
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise ConfigError(
            "data source reasoning_gym needs the package: pip install 'ssppo_jax[tasks]'"
        ) from error


def _no_pycosat(name: str) -> Any:
    raise ImportError("this task needs pycosat, and that a C compiler: pip install pycosat==0.6.6")


def _options(names: list[str], settings: str) -> dict[str, dict]:
    """Return each task's own options."""
    try:
        given = json.loads(settings or "{}")
    except ValueError as error:
        raise ConfigError(
            f"reasoning_gym settings={settings!r} is not JSON ({error}); write an object"
        ) from error
    if not isinstance(given, dict):
        raise ConfigError(f"reasoning_gym settings={settings!r} must be a JSON object of options")
    if len(names) < 2:
        return dict.fromkeys(names, given)
    for key, value in given.items():
        if key not in names or not isinstance(value, dict):
            raise ConfigError(
                f"reasoning_gym settings: {key!r}: with several tasks each gets its own object, by"
                f' name, such as {{"{names[0]}": {{...}}}}'
            )
    return {name: given.get(name, {}) for name in names}


SOURCES = {"reasoning_gym": reasoning_gym}
