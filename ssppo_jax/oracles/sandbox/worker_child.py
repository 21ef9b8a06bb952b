"""The process in which a model's answers are compared. `worker.Worker` executes this file; it
imports no ssppo_jax.

    one pickled request after another  ->  two lines for each, both with the request's word first:
      "begun" once all is loaded ("missing" and why, if a library is not installed), then a JSON
      reply

    {"score": x}         1 when right
    {"unreadable": why}  the checker raised on the answer
    {"error": why}       the question itself cannot be checked

Several reasoning-gym tasks call `eval` on the answer, and sympy's parser does too: what a model
writes is run as Python here. While an answer is compared, writing files, starting processes,
signals and the network are refused and memory is limited. Where the system has seccomp, its filter
(`child`) stands from the first answer on, so an answer cannot reach the run by a system call
either. That guards a run against what a model happens to write. It is no sandbox against an
attacker."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import pickle
import resource
import signal
import sys
import types
from collections.abc import Callable

MEMORY = 4 << 30  # bytes of address space
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REFUSED = (  # beginnings of the names of Python's audit events
    *("subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "signal.", "resource."),
    *("os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.kill", "os.putenv"),
    *("os.truncate", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink"),
    *("os.ch", "os.utime"),
)

_comparing = False


def task(name: str, settings: str, entry: dict, answer: str) -> Callable[[], dict]:
    """Return how to score an answer to an entry of a reasoning-gym task by the task itself."""
    made = _dataset(name, settings)
    return lambda: {"score": float(made.score_answer(answer, entry))}


@functools.cache
def _dataset(name: str, settings: str):
    # imported where questions are made, not for scores
    sys.modules.setdefault("pycosat", types.ModuleType("pycosat"))
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=0, size=1, **json.loads(settings))


def mathematics(gold: str, answer: str) -> Callable[[], dict]:
    """Return how to compare two answers as mathematics, by math-verify."""
    parse, verify = _math_verify()

    def parsed(text: str) -> list:
        """Return the whole text read as LaTeX; never a number picked out of it."""
        return parse(f"${text}$", parsing_timeout=None) if text.strip() else []

    def compare() -> dict:
        truth = parsed(gold)
        if not truth:
            return {"error": f"gold answer {gold[:60]!r} is no mathematical expression"}
        said = parsed(answer)
        return {"score": float(bool(said) and bool(verify(truth, said, timeout_seconds=None)))}

    return compare


@functools.cache
def _math_verify() -> tuple[Callable, Callable]:
    """Import math-verify, whose first parse also makes its tables: a third of a second that no
    answer is charged for."""
    from math_verify import parse, verify

    verify(
        parse("$1$", parsing_timeout=None), parse("$1$", parsing_timeout=None), timeout_seconds=None
    )
    return parse, verify


KINDS: dict[str, Callable[..., Callable[[], dict]]] = {"task": task, "mathematics": mathematics}


def serve() -> None:
    """Answer requests until there are no more, on streams that an answer can neither read nor
    print to."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the limit is refused, or not kept
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.addaudithook(_refuse)
    while True:
        try:
            kind, seconds, values = pickle.load(requests)
        except EOFError:
            return
        _answer(replies, kind, seconds, values)


def _answer(replies, kind: str, seconds: float, values: dict) -> None:
    word = values.pop("word", "")
    try:
        compare = KINDS[kind](**values)
    except ImportError as error:
        return _say(replies, f"{word} missing {' '.join(str(error).split())}")
    _filter()
    _say(replies, f"{word} begun")
    signal.setitimer(signal.ITIMER_REAL, seconds)  # ends this process if nobody is left to kill it
    _say(replies, f"{word} {json.dumps(_guarded(compare))}")
    signal.setitimer(signal.ITIMER_REAL, 0)


@functools.cache
def _filter() -> None:
    """Refuse the system calls that code under test is refused, where that is possible."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "child.py")
    spec = importlib.util.spec_from_file_location("ssppo_child", path)
    assert spec and spec.loader
    child = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(child)
    with contextlib.suppress(OSError, child.Unsupported):
        child._seccomp()


def _guarded(compare: Callable[[], dict]) -> dict:
    global _comparing
    _comparing = True
    try:
        return compare()
    except BaseException as error:  # whatever a model's text makes a parser raise, exit() included
        return {"unreadable": type(error).__name__}
    finally:
        _comparing = False


def _refuse(event: str, values: tuple) -> None:
    if _comparing and (
        event.startswith(REFUSED) or (event == "open" and (values[2] or 0) & WRITING)
    ):
        raise PermissionError(event)


def _say(replies, line: str) -> None:
    replies.write(line + "\n")
    replies.flush()


if __name__ == "__main__":
    serve()
