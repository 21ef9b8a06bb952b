"""The shapes in which unit tests are written, and how each is run. The run reads tests with it; the
process for the code runs them with it (`child`). It imports no ssppo_jax.

    statements   assertions, or anything that raises, at the top level
    check        HumanEval's `def check(candidate)`, called with the function that was asked for
    functions    pytest's `test_...`, and functions without arguments that nobody calls
    pytest       what needs pytest itself: fixtures, parametrize, marks, set-up methods
    unittest     classes of `unittest.TestCase`
    doctest      ">>> add(1, 2)" and the line that must follow

`import solution`, or any module that is not installed, means the response's code. A text that ran
without checking anything has not passed.

What an assertion compares with a constant is held back (`hold`): the process for the code is asked
for the other side's value, and compares nothing."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import struct
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Set
from typing import Any, NamedTuple

warnings.filterwarnings("ignore", module="<text>")  # unknown escapes, say, in what others wrote

NOTHING = "no test ran"
FILE = "test_solution.py"  # where pytest is told that it finds the tests
COUNT = "__checked__"  # the name under which a test's text counts what it checks
HELD = "__held__"  # the name under which it says a value that is compared elsewhere
_SCOPES = ("", "_module", "_class", "_function", "_method")
_FAILING = ("fail", "exit")  # calls that end a test
_CHECKING = (*_FAILING, "raises", "warns", "deprecated_call", HELD)
_EQUAL = ("assertEqual", "assertEquals", "assertListEqual", "assertDictEqual", "assertTupleEqual")
_SKIPPING = ("skip", "skipTest", "exit")
_LEAVING = (ast.Return, ast.Raise, ast.Break, ast.Continue)
_ENDING = (ast.Raise, ast.Expr, ast.Assert)  # kinds of statements that may end a test
_SET_UP = {f"{word}{of}" for word in ("setup", "teardown") for of in _SCOPES}
_MADE = ast.FunctionDef | ast.AsyncFunctionDef
_BODIES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Tests:
    """What one text holds."""

    def __init__(self, tree: ast.Module, sessions: list[str]):
        self.tree = tree
        self.direct = False  # statements of the top level check something
        self.checks: list[str] = []  # functions that take the candidate
        self.functions: list[str] = []  # that take nothing, or what pytest gives
        self.classes: list[str] = []  # pytest's
        self.cases: list[str] = []  # unittest's
        self.pytest = False  # functions and classes need pytest itself
        self.sessions = sessions  # doctest's

    @property
    def checking(self) -> bool:
        """Return true if something is checked when this is run."""
        return self.direct or any(
            (self.checks, self.functions, self.classes, self.cases, self.sessions)
        )


# ---- reading -------------------------------------------------------------------------------------


def why_not(texts: list[str]) -> tuple[str, list[bool]]:
    """Return why nothing can be checked by these texts ("" if something can), and for each text
    whether it checks something. Texts are run in one namespace, one after the other."""
    checking, problems = [], []
    for n, text in enumerate(texts):
        try:
            found = read(text, texts[:n])
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            checking.append(False)
            problems.append(f"the tests are no Python: {error}")
            continue
        checking.append(found.checking)
        asks = found.pytest or "pytest" in _imported(found.tree)
        if asks and importlib.util.find_spec("pytest") is None:
            problems.append("the tests need pytest, which is not installed")
    if not any(checking):
        problems.append("nothing is asserted, and no shape of a test is recognised")
    return (problems[0] if problems else ""), checking


def _imported(tree: ast.Module) -> set[str]:
    """Return the modules that a text imports."""
    plain = (node for node in ast.walk(tree) if isinstance(node, ast.Import))
    taken = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return {alias.name for node in plain for alias in node.names} | {
        node.module or "" for node in taken
    }


def parse(text: str) -> ast.Module:
    """Return the tree of a text, without Python's warnings about it.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: it is no Python.
    """
    return ast.parse(text, "<text>")


def read(text: str, before: list[str] | None = None) -> Tests:
    """Return what a text of tests holds; `before` are the texts that were run before it.

    Raises:
        SyntaxError: it is neither Python nor a session of the interpreter.
    """
    tree = _parsed(text)
    if tree is None:
        return Tests(ast.Module([], []), _sessions([text]))
    earlier = [one for one in map(_parsed, before or []) if one is not None]
    known = _definitions([*earlier, tree])
    found = Tests(tree, _sessions(_docstrings(tree)))
    found.direct = _reaches(tree.body, known)
    called = _names(tree.body, into=False)
    used = _names(tree.body, into=True)
    made = [node for node in tree.body if isinstance(node, _MADE)]
    fixtures = {node.name for node in made if _is_fixture(node)}
    for node in made:
        needed = _needed(node)
        takes_candidate = needed[:1] == ["candidate"] and "candidate" not in fixtures
        if node.name in called or node.name in fixtures:
            continue
        if (takes_candidate or (node.name == "check" and needed)) and len(needed) == 1:
            found.checks.append(node.name)
        elif node.name.startswith("test"):
            found.functions.append(node.name)
            found.pytest |= bool(needed or node.decorator_list)
        elif not needed and node.name not in used and _reaches(node.body, known):
            found.functions.append(node.name)
    cases = set()
    for case in (case for one in [*earlier, tree] for case in _classes(one)):
        if any(_last(base).endswith("TestCase") or _last(base) in cases for base in case.bases):
            cases.add(case.name)
    for case in _classes(tree):
        methods = [one for one in case.body if isinstance(one, _MADE)]
        if case.name in cases:
            found.cases += [case.name] if _has_tests(case.name, [*earlier, tree]) else []
        elif case.name.startswith("Test") and any(one.name.startswith("test") for one in methods):
            found.classes.append(case.name)
            found.pytest |= any(_asks_pytest(one) for one in methods) or bool(case.decorator_list)
    if found.functions or found.classes:
        found.pytest |= any(_asks_pytest(node) for node in made if not node.name.startswith("test"))
    return found


def _parsed(text: str) -> ast.Module | None:
    """Return a text's tree; None if it is a session of the interpreter, perhaps with words."""
    try:
        return parse(text)
    except SyntaxError:
        if any(line.lstrip().startswith(">>>") for line in text.split("\n")):
            return None
        raise


def _has_tests(name: str, trees: list[ast.Module]) -> bool:
    """Return true if a class, or one that it is made from, has methods that are tests."""
    for tree in trees:
        for node in _classes(tree):
            if node.name == name:
                own = (one.name for one in node.body if isinstance(one, _MADE))
                return any(one.startswith("test") for one in own) or any(
                    _last(base) != name and _has_tests(_last(base), trees) for base in node.bases
                )
    return False


def _asks_pytest(node: Any) -> bool:
    """Return true if a function is a fixture or a set-up, or a test with fixtures or marks."""
    if node.name.startswith("test"):
        return bool([name for name in _needed(node) if name != "self"] or node.decorator_list)
    return _is_fixture(node) or node.name in _SET_UP


def _classes(tree: ast.Module) -> list[ast.ClassDef]:
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


def _needed(node: Any) -> list[str]:
    """Return the names of a function's parameters without defaults."""
    plain = [*node.args.posonlyargs, *node.args.args]
    plain = plain[: len(plain) - len(node.args.defaults)]
    pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return [one.arg for one in plain] + [one.arg for one, default in pairs if default is None]


def _is_fixture(node: Any) -> bool:
    return any("fixture" in ast.unparse(one) for one in node.decorator_list)


def _last(node: ast.expr) -> str:
    """Return the last part of a dotted name."""
    return getattr(node, "attr", getattr(node, "id", ""))


def _definitions(trees: list[ast.Module]) -> dict[str, list[ast.stmt]]:
    """Return the bodies of all functions and methods by name; a class has those of its methods."""
    known: dict[str, list[ast.stmt]] = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, _MADE):
            known.setdefault(node.name, []).extend(node.body)
        elif isinstance(node, ast.ClassDef):
            made = [one for one in node.body if isinstance(one, _MADE) and one.name == "__init__"]
            known.setdefault(node.name, []).extend(line for one in made for line in one.body)
    return known


def _inside(nodes: list[Any]) -> Iterator[ast.AST]:
    """Yield what runs when these statements run: not the bodies of functions and classes."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, _BODIES):
            waiting += node.decorator_list
        else:
            waiting += ast.iter_child_nodes(node)


def _reaches(body: list[ast.stmt], known: dict[str, list[ast.stmt]]) -> bool:
    """Return true if these statements check something, themselves or in what they name."""
    seen: set[str] = set()
    waiting = [body]
    while waiting:
        for node in _inside(waiting.pop()):
            if _checks(node):
                return True
            name = _last(node) if isinstance(node, ast.Name | ast.Attribute) else ""
            if name in known and name not in seen:
                seen.add(name)
                waiting.append(known[name])
    return False


def _checks(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        name = _last(node.func)
        return name.startswith("assert") or name in _CHECKING
    return isinstance(node, ast.Assert | ast.Raise)


def _names(body: list[ast.stmt], *, into: bool) -> set[str]:
    """Return the names that statements use; `into` functions and classes as well."""
    walked: Iterator[ast.AST] = (
        (node for statement in body for node in ast.walk(statement)) if into else _inside(body)
    )
    return {node.id for node in walked if isinstance(node, ast.Name)}


def _docstrings(tree: ast.Module) -> list[str]:
    """Return the strings that stand alone as first statements."""
    held = (node for node in ast.walk(tree) if isinstance(node, (ast.Module, *_BODIES)))
    return [ast.get_docstring(node) or "" for node in held]


def _sessions(texts: list[str]) -> list[str]:
    """Return the texts that hold an example with its result."""
    shown = [text for text in texts if ">>>" in text]
    if not shown:
        return []
    import doctest

    held, parser = [], doctest.DocTestParser()
    for text in shown:
        with contextlib.suppress(ValueError):
            if any(example.want for example in parser.get_examples(text)):
                held.append(text)
    return held


# ---- running -------------------------------------------------------------------------------------


def run(text: str, module: types.ModuleType, entries: list[str], values: list) -> str:
    """Run a text of tests in the namespace of the response's code; return why it did not pass.

    `entries` are the names that the function asked for may have, the likeliest first. `values` gets
    what the text says of values that are held back: (number, `plain` value).
    """
    counted = [0]
    scope = module.__dict__

    def count() -> None:
        counted[0] += 1

    def held(number: int, value: Any) -> None:
        count()
        values.append((number, plain(value)))

    scope.update({COUNT: count, HELD: held})
    found = read(text)
    checking = found.checking or _reaches(found.tree.body, _definitions([found.tree]))
    _quiet(text)
    name, scope["__name__"] = scope["__name__"], "__main__"
    try:
        _executed(_counting(_redirected(found.tree, module)), scope)
        for check in found.checks:
            scope[check](_candidate(module, entries))
        reason = _framework(found, module, counted)
    finally:
        scope["__name__"] = name
    if reason or not checking or counted[0]:
        return reason
    return f"{NOTHING}: nothing of it was checked"


def _quiet(text: str) -> None:
    """Replace the functions that run a whole program's tests and exit: `run` does their work."""
    for name in ("unittest", "pytest"):
        if name in text and importlib.util.find_spec(name) is not None:
            vars(importlib.import_module(name))["main"] = lambda *_, **__: 0


def _executed(tree: ast.Module, scope: dict) -> None:
    """Execute a text; `sys.exit(0)` at its end is an end."""
    try:
        exec(compile(tree, "<test>", "exec", dont_inherit=True), scope)
    except SystemExit as error:
        frames, trace = [], error.__traceback__
        while trace is not None:
            frames.append(trace.tb_frame.f_code.co_filename)
            trace = trace.tb_next
        if error.code or "<response>" in frames:
            raise


def _candidate(module: types.ModuleType, entries: list[str]) -> Any:
    """Return the function that was asked for: by its name, or the last that the code defines."""
    for entry in entries:
        with contextlib.suppress(NameError, AttributeError):
            return eval(entry, module.__dict__)
    own = [
        value
        for name, value in module.__dict__.items()
        if isinstance(value, types.FunctionType)
        and value.__code__.co_filename == "<response>"
        and not name.startswith("_")
    ]
    if not own:
        raise NameError("the code defines no function to check")
    return own[-1]


def _framework(found: Tests, module: types.ModuleType, counted: list[int]) -> str:
    """Run the tests that nobody has called yet; return the first reason against them."""
    scope = module.__dict__
    for name in found.cases:
        if reason := _unittest(scope[name], counted):
            return reason
    for name in found.functions:
        if not (found.pytest and name.startswith("test")):
            _called(scope[name])
    for name in found.classes if not found.pytest else ():
        for method in [one for one in dir(scope[name]) if one.startswith("test")]:
            _called(getattr(scope[name](), method))
    if found.pytest and (reason := _pytest(found, module, counted)):
        return reason
    for text in found.sessions:
        if reason := _doctest(text, scope, counted):
            return reason
    return ""


def _called(test: Callable) -> None:
    result = test()
    if hasattr(result, "__await__"):
        import asyncio

        asyncio.run(result)


def _unittest(case: type, counted: list[int]) -> str:
    import unittest

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    ran = result.testsRun - len(result.skipped)
    if not result.wasSuccessful():
        wrong = [*result.failures, *result.errors]
        return wrong[0][1].strip().splitlines()[-1] if wrong else "an unexpected success"
    counted[0] += ran
    return ""


def _doctest(text: str, scope: dict, counted: list[int]) -> str:
    import doctest

    said: list[str] = []
    test = doctest.DocTestParser().get_doctest(text, scope, "tests", "<test>", 0)
    result = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    counted[0] += result.attempted
    return " ".join("".join(said).split()[-20:]) if result.failed else ""


def _pytest(found: Tests, module: types.ModuleType, counted: list[int]) -> str:
    """Let pytest run the functions and classes, with what it offers: fixtures, parametrize."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import pytest

    wanted, wrong = {*found.functions, *found.classes}, []

    class Held(pytest.Module):
        """The tests as they stand in memory."""

        def _getobj(self):
            return module

    class Plugin:
        def pytest_configure(self, config):
            config.addinivalue_line("markers", "asyncio: a coroutine")

        def pytest_collect_file(self, file_path, parent):
            return Held.from_parent(parent, path=file_path)

        def pytest_collection_modifyitems(self, items):
            items[:] = [one for one in items if _top(one) in wanted]

        def pytest_pyfunc_call(self, pyfuncitem):
            names = pyfuncitem._fixtureinfo.argnames
            values = {name: pyfuncitem.funcargs[name] for name in names}
            _called(lambda: pyfuncitem.obj(**values))
            return True

        def pytest_runtest_logreport(self, report):
            counted[0] += report.when == "call" and report.passed
            if report.failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                wrong.append(crash.message if crash else str(report.longrepr))

        def pytest_collectreport(self, report):
            if report.failed:
                wrong.append(str(report.longrepr))

    def _top(item) -> str:
        chain = [one.name for one in item.listchain()]
        return chain[chain.index(FILE) + 1].split("[")[0]

    with open(FILE, "wb"):
        pass
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir=.", "--confcutdir=."]
    real = importlib.import_module("_pytest.config").main  # the name pytest.main is replaced
    status = real([*options, FILE], plugins=[Plugin()])
    if wrong:
        return wrong[0].strip().splitlines()[-1]
    return "" if status == 0 else f"{NOTHING}: pytest ended with {int(status)}"


# ---- what is held back ---------------------------------------------------------------------------


class Held(NamedTuple):
    """A constant that the code does not see."""

    wanted: Any
    same: bool  # `is` None, True or False, not equality
    needed: bool  # every run of the text must come by
    reason: str  # against code that has another value


def hold(text: str) -> tuple[str, list[Held]]:
    """Return a text that says its values in place of comparing them with constants, and those.

    Taken are `assert X == constant` and unittest's assertEqual at the top level and in functions
    that are run as tests, but for decorated ones and what stands in `try` or `with`, where a
    failure may be wanted.
    """
    found = read(text)
    held: list[Held] = []
    run_alone = {*found.functions, *found.checks, *_called_plainly(found.tree.body)}
    tests: list[ast.stmt] = []
    for node in found.tree.body:
        if isinstance(node, ast.ClassDef) and node.name in (*found.cases, *found.classes):
            methods = [] if node.decorator_list else node.body
            tests += [one for one in methods if getattr(one, "name", "").startswith("test")]
        elif isinstance(node, _MADE) and node.name in run_alone:
            tests.append(node)
    for test in tests:
        if isinstance(test, _MADE) and not test.decorator_list:
            _hold(test.body, True, held)
    _hold(found.tree.body, True, held)
    return (ast.unparse(ast.fix_missing_locations(found.tree)), held) if held else (text, [])


def _is_main(node: ast.If) -> bool:
    return ast.unparse(node.test) == "__name__ == '__main__'"


def _called_plainly(body: list[ast.stmt]) -> set[str]:
    """Return the functions that are called by statements of their own, at the top level."""
    names = set()
    for node in body:
        if isinstance(node, ast.If) and _is_main(node):
            names |= _called_plainly(node.body)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            names.add(_last(node.value.func))
    return names


def _hold(body: list[ast.stmt], needed: bool, held: list[Held]) -> None:
    """Replace the assertions of statements, in place."""
    done: list[ast.stmt] = []
    for node in body:
        done += [_said(one, needed, held) for one in _single(node)]
        if isinstance(node, ast.If):
            _hold(node.body, needed and _is_main(node), held)
            _hold(node.orelse, False, held)
        elif isinstance(node, ast.For | ast.AsyncFor | ast.While):
            _hold(node.body, False, held)
        for inner in _inside([node]):
            skips = isinstance(inner, ast.Call) and _last(inner.func) in _SKIPPING
            needed = needed and not skips and not isinstance(inner, _LEAVING)
    body[:] = done


def _single(node: ast.stmt) -> list[ast.stmt]:
    """Return the assertions that `assert a and b` makes."""
    match node:
        case ast.Assert(ast.BoolOp(ast.And(), values), message):
            return [ast.Assert(value, message) for value in values]
    return [node]


def _said(node: ast.stmt, needed: bool, held: list[Held]) -> ast.stmt:
    """Return the statement that says the value of an assertion, or the statement itself."""
    same = False
    message: ast.expr | None = None
    match node:
        case ast.Assert(ast.Compare(left, [ast.Eq() | ast.Is() as sign], [right]), message):
            same = isinstance(sign, ast.Is)
        case ast.Expr(ast.Call(called, [left, right, *_])) if _last(called) in _EQUAL:
            pass
        case _:
            return node
    sides = [(_constant(left), right), (_constant(right), left)]
    found = [(value, other) for (constant, value), other in sides if constant]
    if len(found) != 1:
        return node
    wanted, other = found[0]
    if same and wanted is not None and not isinstance(wanted, bool):
        return node
    reason = f"{ast.unparse(other)[:80]} is not {repr(wanted)[:80]}"
    reason = str(message.value) if isinstance(message, ast.Constant) else reason
    held.append(Held(wanted, same, needed, reason))
    values: list[ast.expr] = [ast.Constant(len(held) - 1), other]
    return ast.Expr(ast.Call(ast.Name(HELD, ast.Load()), values, []))


def _constant(node: ast.expr) -> tuple[bool, Any]:
    """Return whether an expression is a constant, and its value."""
    if ast.unparse(node) in ("set()", "frozenset()"):
        return True, set()
    try:
        return True, ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False, None


def plain(value: Any) -> Any:
    """Return a value as JSON: what equals a Python constant keeps its type's name and its parts."""
    if value is None or value is True or value is False:
        return value
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        if value.dtype.kind == "f" and value.dtype.itemsize < 8:  # equals what rounds to it
            return ["ef"[value.dtype.itemsize // 4], repr(float(value))]
        value = value.item()
    if isinstance(value, str):
        return ["str", "".join(list(value))]
    if isinstance(value, int):
        return ["int", hex(int(value))]
    if isinstance(value, float):
        return ["float", repr(float(value))]
    if isinstance(value, complex):
        return ["complex", repr(value.real), repr(value.imag)]
    if isinstance(value, bytes | bytearray):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, dict):
        return ["dict", [[plain(key), plain(value[key])] for key in list(value)]]
    for kind in (list, tuple, Set):
        if isinstance(value, kind):
            return [kind.__name__, [plain(one) for one in value]]
    return _number(value) or ["other", type(value).__name__]


def _number(value: Any) -> list | None:
    """Return a number of another kind, which equals constants exactly."""
    import decimal
    import numbers

    if isinstance(value, decimal.Decimal):
        return ["Decimal", str(value)]
    if isinstance(value, numbers.Rational):
        return ["Fraction", hex(int(value.numerator)), hex(int(value.denominator))]
    return ["float", repr(float(value))] if isinstance(value, numbers.Real) else None


def equals(said: Any, held: Held) -> bool:
    """Return true if a value, as `plain` wrote it, is what was held back.

    Raises:
      ValueError, TypeError, KeyError, IndexError: the code wrote it, and not `plain`.
    """
    if held.same:
        return said is held.wanted
    if isinstance(said, list) and said[0] in ("e", "f"):  # float16, float32
        try:
            rounded = struct.pack(said[0], held.wanted)
        except (struct.error, OverflowError):
            return False
        return struct.unpack(said[0], rounded)[0] == float(said[1])
    return bool(_value(said) == held.wanted)


def _value(said: Any) -> Any:
    if said is None or isinstance(said, bool):
        return said
    kind, *parts = said
    match kind:
        case "str":
            return str(parts[0])
        case "int":
            return int(parts[0], 16)
        case "float":
            return float(parts[0])
        case "complex":
            return complex(float(parts[0]), float(parts[1]))
        case "bytes":
            return bytes.fromhex(parts[0])
        case "dict":
            return {_value(key): _value(value) for key, value in parts[0]}
        case "list":
            return [_value(one) for one in parts[0]]
        case "tuple":
            return tuple(_value(one) for one in parts[0])
        case "Set":
            return frozenset(_value(one) for one in parts[0])
        case "Decimal":
            import decimal

            return decimal.Decimal(parts[0])
        case "Fraction":
            import fractions

            return fractions.Fraction(int(parts[0], 16), int(parts[1], 16))
    return object()  # equals nothing


def judged(values: list, held: list[Held]) -> str:
    """Return the first held constant that is not met; empty if all are."""
    said: dict[int, list] = {}
    for number, value in values:
        said.setdefault(number, []).append(value)
    for number, one in enumerate(held):
        got = said.get(number, [])
        if one.needed and not got:
            return f"AssertionError: a test was passed by, whose reason is: {one.reason}"
        if not all(equals(value, one) for value in got):
            return f"AssertionError: {one.reason}"
    return ""


# ---- what a text imports, and what it counts -----------------------------------------------------


def _redirected(tree: ast.Module, module: types.ModuleType) -> ast.Module:
    """Let imports of the code under test find it, under whatever name: a module that is not
    installed, or one that lacks names which the code has."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            ours = all(name in module.__dict__ for name in names if name != "*")
            if node.level or (ours and not _offers(node.module or "", names)):
                _alias(node.module or "solution", module)
                node.level, node.module = 0, "solution"
                for alias in node.names:  # from . import solution
                    if alias.name not in module.__dict__ and alias.name != "*":
                        module.__dict__[alias.name] = module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if not _offers(alias.name, []) and _used(tree, alias) <= set(module.__dict__):
                    _alias(alias.name, module)
    return tree


def _used(tree: ast.Module, alias: ast.alias) -> set[str]:
    """Return the attributes that a text takes from an imported module."""
    name = alias.asname or alias.name
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == name
    }


def _offers(name: str, wanted: list[str]) -> bool:
    """Return true if an installed module of this name has what is wanted of it."""
    if name in sys.modules and name.partition(".")[0] not in ("solution", "__main__"):
        return all(one == "*" or hasattr(sys.modules[name], one) for one in wanted)
    try:
        if importlib.util.find_spec(name) is None:
            return False
        library = importlib.import_module(name) if wanted else None
    except Exception:
        return False
    return all(one == "*" or hasattr(library, one) for one in wanted)


def _alias(name: str, module: types.ModuleType) -> None:
    """Enter the code as a module of this name, with the packages that the name needs."""
    parts, inner = name.split("."), module
    for n in range(len(parts), 0, -1):
        known = ".".join(parts[:n])
        if known not in sys.modules:
            sys.modules[known] = inner
        package = types.ModuleType(".".join(parts[: n - 1]))
        setattr(package, parts[n - 1], inner)
        inner = package


class _Counter(ast.NodeTransformer):
    """Puts a count before every statement that checks something, and at the start of a body that
    fails when its end is reached."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list):
                counted = [one for each in body for one in self._counted(each)]
                ends = any(isinstance(one, _ENDING) and _ends([one]) for one in body)
                first = [self._count(body[0])] if ends and not isinstance(node, ast.Module) else []
                setattr(node, name, [*first, *counted])
        return node

    def _counted(self, node: ast.stmt) -> list[ast.stmt]:
        return [self._count(node), node] if self._counts(node) else [node]

    def _count(self, place: ast.stmt) -> ast.stmt:
        call = ast.Expr(ast.Call(ast.Name(COUNT, ast.Load()), [], []))
        return ast.copy_location(call, place)

    def _counts(self, node: ast.stmt) -> bool:
        if isinstance(node, _BODIES):
            return False  # what is within is counted where it stands, as in loops
        if isinstance(node, ast.For | ast.AsyncFor | ast.While):
            return _ends(node.orelse)
        if isinstance(node, ast.With | ast.AsyncWith):
            heads = [item.context_expr for item in node.items]
            return any(_checks(one) for one in _inside(heads)) or _ends(node.body)
        if isinstance(node, ast.If | ast.Try | ast.Match):
            return _ends([node])
        return any(_checks(one) for one in _inside([node]))


def _ends(body: list[Any]) -> bool:
    """Return true if statements hold what a passing test does not reach."""
    return any(
        isinstance(one, ast.Raise)
        or (isinstance(one, ast.Call) and _last(one.func) in _FAILING)
        or (
            isinstance(one, ast.Assert)
            and isinstance(one.test, ast.Constant)
            and not one.test.value
        )
        for one in _inside(body)
    )


def _counting(tree: ast.Module) -> ast.Module:
    return ast.fix_missing_locations(_Counter().visit(tree))
