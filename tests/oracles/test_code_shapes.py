"""The shapes in which unit tests come: right code scores 1 and wrong code 0 in each, and a text
that checks nothing is a failure of the prompt, never a reward."""

import collections
import decimal
import enum
import fractions
import json
import math
import sys

import numpy as np
import pytest

from ssppo_jax.oracles.code import code
from ssppo_jax.oracles.sandbox.shapes import Held, equals, hold, judged, plain, why_not
from ssppo_jax.types import Prompt

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
RIGHT = """
def _plus(a, b):
    return a + b

def add(a, b):
    if a is None:
        raise ValueError("no number")
    return _plus(a, b)
"""
WRONG = "def add(a, b):\n    return a - b\n"
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(0, 5) == 5\n"
CASE = """
import unittest

class Base(unittest.TestCase):
    def setUp(self):
        self.one = 1

class TestAdd(Base):
    def test_add(self):
        self.assertEqual(add(self.one, 2), 3)

    def test_none(self):
        with self.assertRaises(ValueError):
            add(None, 1)
"""
PARAMETRIZE = """
import pytest

@pytest.mark.parametrize("a, b", [(0, 0), (1, 2)])
@pytest.mark.parametrize("c", [0, 1])
def test_add(a, b, c):
    assert add(a, b) + c == a + b + c
"""
FIXTURES = """
import pytest

@pytest.fixture(autouse=True)
def begun():
    yield

@pytest.fixture
def three(two):
    return two + 1

@pytest.fixture
def two(tmp_path, monkeypatch):
    monkeypatch.setenv("TWO", "2")
    (tmp_path / "two").write_text("2")
    return int((tmp_path / "two").read_text())

class TestAdd:
    def test_add(self, three):
        assert add(1, 2) == three
"""
SHAPES = {
    "statements": "assert add(1, 2) == 3\nassert add(0, 5) == 5",
    "a list": ["import math", "x = math.floor(2.5)", "assert add(1, x) == 3"],
    "raises itself": "if add(1, 2) != 3:\n    raise ValueError('no')",
    "exits": "import sys\nif add(1, 2) != 3:\n    sys.exit(1)\nsys.exit(0)",
    "must raise": (
        "def test():\n    try:\n        add(None, 1)\n    except ValueError:\n        return\n"
        "    raise AssertionError\n"
    ),
    "must raise, by assert": (
        "try:\n    add(None, 1)\n    assert False\nexcept ValueError:\n    pass"
    ),
    "must raise, in a test": (
        "def test():\n    try:\n        add(None, 1)\n        assert 0, 'no error'\n"
        "    except ValueError:\n        pass\n"
    ),
    "must raise, in check": (
        "def check(candidate):\n    try:\n        candidate(None, 1)\n    except ValueError:\n"
        "        pass\n    else:\n        assert False\n"
    ),
    "if, by assert": "if add(1, 2) != 3:\n    assert False",
    "loop with else": (
        "for n in (1, 2):\n    if add(n, 1) == 3:\n        break\nelse:\n    raise ValueError"
    ),
    "a helper": (
        "def same(a, b):\n    if a != b:\n        raise AssertionError(a)\nsame(add(1, 2), 3)"
    ),
    "check": f"METADATA = {{'author': 'x'}}\n\n\n{CHECK}",
    "check that is called": f"{CHECK}\ncheck(add)",
    "check called in main": f"{CHECK}\nif __name__ == '__main__':\n    check(add)",
    "check in another text": [CHECK, "check(add)"],
    "check of an import": f"from solution import add\n\n{CHECK}",
    "candidate": "def test_it(candidate):\n    assert candidate(1, 2) == 3",
    "functions": (
        "def test_one():\n    assert add(1, 2) == 3\n\ndef test_two():\n    assert add(2, 2) == 4"
    ),
    "functions called in main": (
        "def test_one():\n    assert add(1, 2) == 3\n\nif __name__ == '__main__':\n    test_one()"
    ),
    "a function nobody calls": "def run_tests():\n    assert add(1, 2) == 3",
    "a coroutine": "async def test_one():\n    assert add(1, 2) == 3",
    "a class": "class TestAdd:\n    def test_one(self):\n        assert add(1, 2) == 3",
    "a class with set-up": (
        "class TestAdd:\n    def setup_method(self):\n        self.three = 3\n"
        "    def test_one(self):\n        assert add(1, 2) == self.three"
    ),
    "parametrize": PARAMETRIZE,
    "fixtures": FIXTURES,
    "pytest's main": f"{PARAMETRIZE}\nimport sys\nsys.exit(pytest.main([__file__]))",
    "pytest and a function nobody calls": (
        "def go(x):\n    return x\ndef setup_function():\n    pass\ndef run():\n"
        "    assert go(add(1, 2)) == go(3)\ndef test_none():\n    assert add(0, 0) == 0"
    ),
    "what is printed": (
        "def test_it(capsys):\n    print(add(1, 2))\n    assert capsys.readouterr().out == '3\\n'"
    ),
    "pytest.raises": "import pytest\nwith pytest.raises(ValueError):\n    add(None, 1)",
    "a marked coroutine": (
        "import pytest\n@pytest.mark.asyncio\nasync def test_one():\n    assert add(1, 2) == 3"
    ),
    "unittest": CASE,
    "unittest.main": f"{CASE}\nunittest.main()",
    "unittest.main in main": f"{CASE}\nif __name__ == '__main__':\n    unittest.main(verbosity=2)",
    "a session": ">>> add(1, 2)\n3\n>>> add(2, 2)\n4\n",
    "a session between words": "Like this:\n\n>>> add(1, 2)\n3\n\nand this:\n\n>>> add(2, 2)\n4\n",
    "a session in a docstring": (
        '"""The tests.\n\n>>> add(1, 2)\n3\n"""\nimport doctest\ndoctest.testmod()\n'
    ),
    "from solution": "from solution import add\nassert add(1, 2) == 3",
    "from another name": "from your_module import add\nassert add(1, 2) == 3",
    "from a name that is taken": "from code import add\nassert add(1, 2) == 3",
    "from a package": "from src.solution import *\nassert add(1, 2) == 3",
    "from here": "from .solution import add\nassert add(1, 2) == 3",
    "a module": "import solution as s\nimport main\nassert s.add(1, 2) == main.add(1, 2) == 3",
    "a patch": (
        "from unittest import mock\nwith mock.patch('solution.print', create=True):\n"
        "    assert add(1, 2) == 3"
    ),
    "numpy": "import numpy as np\nnp.testing.assert_allclose(add(1.0, 2.0), 3.0)",
}


def prompt(tests, i=0, text="Write `def add(a, b):`", **meta):
    return Prompt(f"p{i}", ({"role": "user", "content": text},), {"tests": tests, **meta})


@pytest.fixture(scope="module")
def rewards():
    """Of right and of wrong code, for every shape: one call of the oracle."""
    prompts = [prompt(tests, i) for i, tests in enumerate(SHAPES.values())]
    verdict = code(workers=2, timeout=20.0).ask(prompts, [[RIGHT, WRONG]] * len(prompts))
    return dict(zip(SHAPES, zip(verdict.failed, verdict.reward.tolist(), strict=True), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_right_code_scores_one_and_wrong_code_zero(shape, rewards):
    assert rewards[shape] == (None, [1.0, 0.0])


NOTHING = {
    "pass": "pass",
    "a comment": "# assert add(1, 2) == 3",
    "a call": "add(1, 2)",
    "a comparison": "add(1, 2) == 3",
    "a print": "print(add(1, 2) == 3)",
    "a string": "'''assert add(1, 2) == 3'''",
    "a definition": "def three():\n    return 3",
    "a helper that nobody calls": "def same(a, b):\n    assert a == b",
    "a class of another kind": "class Run:\n    def go(self):\n        assert add(1, 2) == 3",
    "an empty case": "import unittest\nclass TestAdd(unittest.TestCase):\n    pass",
    "an import": ["import unittest", "import math"],
    "a session without results": ">>> add(1, 2)",
    "no Python": "assert add(1, 2) = 3",
    "a null byte": "assert add(1, 2) == 3\0",
}


@pytest.mark.parametrize("tests", NOTHING.values(), ids=NOTHING)
def test_a_text_that_checks_nothing_fails_the_prompt(tests):
    verdict = code().ask([prompt(tests)], [[RIGHT, WRONG]])
    assert verdict.failed[0].reason.startswith("no test ran")
    assert np.isnan(verdict.reward).all()


def test_pytest_that_is_not_installed_fails_the_prompt(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for tests in (PARAMETRIZE, "import pytest\ndef test_one():\n    assert add(1, 2) == 3"):
        assert "need pytest, which is not installed" in why_not([tests])[0]


def test_what_a_response_keeps_from_being_checked_is_no_reward():
    """That is the response's doing: it is wrong, and fails nobody."""
    tests = ["for n in add(1, 2):\n    assert n == 3", "assert True"]
    none = "def add(a, b):\n    return []\n"
    verdict = code(partial=True).ask([prompt(tests)], [[none, "def add(a, b):\n    return [3]\n"]])
    assert verdict.failed == (None,)
    np.testing.assert_array_equal(verdict.reward, [[0.5, 1.0]])


def test_texts_that_only_prepare_are_no_share_of_the_reward():
    verdict = code(partial=True).ask([prompt(["x = 3", "assert add(1, 2) == x"])], [[RIGHT, WRONG]])
    np.testing.assert_array_equal(verdict.reward, [[1.0, 0.0]])


def test_the_candidate_is_named_by_the_row_then_by_the_prompt_then_by_the_code():
    helper_last = f"{RIGHT}\ndef show(a, b):\n    return str(a)\n"
    method = "class Solution:\n    def add(self, a, b):\n        return a + b\n"
    prompts = [
        prompt(CHECK, 0, entry_point="add", text="Add."),
        prompt(CHECK, 1, entry_point="Solution().add", text="Add."),
        prompt(CHECK, 2),
        prompt(CHECK, 3, text="Add two numbers."),
    ]
    responses = [[helper_last], [method], [helper_last], [RIGHT]]
    assert code().ask(prompts, responses).reward.tolist() == [[1.0]] * 4


# ---- what is held back ---------------------------------------------------------------------------

VALUES = [
    *(None, True, False, 0, 1, -3, 10**400, 1.0, 0.1, -0.0, math.inf, math.nan, 1j, "", "a"),
    *("\ud800", b"a", bytearray(b"a"), [], [1, 2], (1, 2), [(1, [2.0])], {1, 2}, frozenset({1, 2})),
    *({}, {"a": [1]}, {1: {(1, 2): None}}, {"a": 1}.keys(), collections.Counter("aab")),
    *(collections.OrderedDict(a=[1]), collections.defaultdict(list, a=[1]), range(1, 3)),
    *(collections.deque([1, 2]), collections.namedtuple("P", "x y")(1, 2)),
    *(decimal.Decimal("0.1"), decimal.Decimal(1)),
    *(fractions.Fraction(1, 10), fractions.Fraction(1), enum.IntEnum("E", "A").A, np.int64(1)),
    *(np.float64(0.1), np.float32(0.1), np.float16(0.5), np.bool_(True), np.str_("a"), object()),
    *(enum.Enum("E", "A").A, iter([1, 2]), int, len),
]
CONSTANTS = [
    *(None, True, False, 0, 1, -3, 10**400, 1.0, 0.1, 0.5, 1j, "", "a", "\ud800", b"a", [], [1, 2]),
    *((1, 2), [(1, [2])], {1, 2}, set(), {"a"}),
    *({}, {"a": [1]}, {1: {(1, 2): None}}, {"a": 2, "b": 1}),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_compared_outside_as_python_compares_them(value):
    said = json.loads(json.dumps(plain(value)))
    for constant in CONSTANTS:
        if isinstance(value, np.generic) and (constant == 10**400 or hasattr(constant, "__len__")):
            continue  # NumPy compares element by element, or not at all
        assert equals(said, Held(constant, False, True, "")) == bool(value == constant), constant
    for constant in (None, True, False):
        assert equals(said, Held(constant, True, True, "")) == (value is constant)


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        ("assert add(1, 2) == 3, 'no'", [3]),
        ("assert [3] == [add(1, 2)]", [[3]]),
        ("assert add(1, 2) is None and add(2, 2) == -4", [None, -4]),
        (CHECK, [3, 5]),
        (CASE, [3]),
        (
            "class T(TestCase):\n def test(self):\n  self.assertEqual(f(), 3)",
            [3],
        ),
        ("def test_one():\n    assert add(1, 2) == {'a': (3,)}", [{"a": (3,)}]),
        ("for n in (1, 2):\n    assert add(n, 0) == 3", [3]),
        ("if __name__ == '__main__':\n    assert add(1, 2) == 3", [3]),
        ("def go():\n    assert f() == 3\nif __name__ == '__main__':\n    go()", [3]),
        ("try:\n    assert add(1, 2) == 3\nexcept AssertionError:\n    pass\nassert f()", []),
        ("with pytest.raises(AssertionError):\n    assert add(1, 2) == 3", []),
        ("@pytest.mark.xfail\ndef test_one():\n    assert add(1, 2) == 3", []),
        ("def helper():\n    assert add(1, 2) == 3\ntry:\n    helper()\nexcept E:\n    pass", []),
        ("assert add(1, 2) == x", []),
        ("assert abs(add(1, 2) - 3) < 1e-6", []),
        ("assert 1 == 1", []),
        ("assert 1 < add(1, 2) == 3", []),
        (">>> add(1, 2)\n3", []),
    ],
)
def test_the_constants_that_code_cannot_see(text, constants):
    written, held = hold(text)
    assert [one.wanted for one in held] == constants
    assert (written == text) == (not constants)
    for one in held:
        assert f"== {one.wanted!r}" not in written and not written.startswith(
            f"assert {one.wanted!r}"
        )


def test_a_held_constant_that_every_run_meets_must_be_met():
    """Else code could pass by saying nothing."""
    held = hold("assert f(1) == 2\nfor n in f(3):\n    assert n == 4\n")[1]
    assert [one.needed for one in held] == [True, False]
    two, three = ["int", "0x2"], ["int", "0x3"]
    assert judged([(0, two)], held) == ""
    assert "passed by" in judged([], held) and "f(1) is not 2" in judged([(0, three)], held)
    assert "n is not 4" in judged([(0, two), (1, ["int", "0x4"]), (1, three)], held)
    after = hold("def test():\n    if g():\n        return\n    assert f(1) == 2\n")[1]
    assert [one.needed for one in after] == [False]


def test_objects_that_equal_constants_by_their_own_rule_need_the_option():
    source = f"{RIGHT}\nclass N:\n    def __init__(self, v): self.v = v\n"
    source += "    def __eq__(self, other): return self.v == other\n"
    row = prompt("assert N(add(1, 2)) == 3")
    for held_back, reward in ((True, 0.0), (False, 1.0)):
        assert code(held_back=held_back).ask([row], [[source]]).reward.tolist() == [[reward]]


# ---- right programs ------------------------------------------------------------------------------

PROGRAMS = {
    "dataclass": (
        "from dataclasses import dataclass\n@dataclass(order=True)\nclass P:\n    x: int\n"
        "    y: int = 0\n",
        "assert P(1) < P(2) and P(1) == P(1, 0)",
    ),
    "slots": (
        "from dataclasses import dataclass, field\n@dataclass(slots=True, kw_only=True)\nclass P:\n"
        "    x: list = field(default_factory=list)\n",
        "assert P(x=[1]).x == [1]",
    ),
    "annotations are objects": (
        "def f(x: int) -> int:\n    return x\n",
        "assert f.__annotations__ == {'x': int, 'return': int}",
    ),
    "annotations of its own future": (
        "from __future__ import annotations\ndef f(x: int): return x\n",
        "assert f.__annotations__ == {'x': 'int'}",
    ),
    "dispatch": (
        "from functools import singledispatch\n@singledispatch\ndef f(x): return 0\n"
        "@f.register\ndef _(x: int): return 1\n",
        "assert f(3) == 1 and f('') == 0",
    ),
    "hints": (
        "class N:\n    after: 'N'\n    v: int\n",
        "import typing\nassert typing.get_type_hints(N) == {'after': N, 'v': int}",
    ),
    "types": (
        "from typing import NamedTuple, TypedDict\nfrom enum import Enum, auto\n"
        "class A(NamedTuple):\n"
        "    a: int\nclass B(TypedDict):\n    a: int\nclass C(Enum):\n    A = auto()\n",
        "assert A(1).a == B(a=1)['a'] == C.A.value == 1",
    ),
    "pickle": (
        "import copy, pickle\nclass N:\n    def __init__(self): self.v = [1]\n",
        "assert pickle.loads(pickle.dumps(N())).v == copy.deepcopy(N()).v == [1]",
    ),
    "main": (
        "import sys\ndef f():\n    return 1\nif __name__ == '__main__':\n    sys.exit(f())\n",
        "assert f() == 1 and sys.modules['__main__'].f is f",
    ),
    "source": (
        "def f():\n    return 1\n",
        "import inspect\nassert inspect.getsource(f).startswith('def f')",
    ),
    "input": ("x = input()\ndef f():\n    return x\n", "assert f() == ''"),
    "prints": (
        "import os\nprint('\u00e9 \u65e5 \U0001f600')\nprint('', file=open(os.devnull, 'w'))\n",
        "assert True",
    ),
    "deep": (
        "import sys\nsys.setrecursionlimit(10 ** 6)\ndef f(n):\n"
        "    return 0 if n == 0 else 1 + f(n - 1)\n",
        "assert f(50000) == 50000",
    ),
    "a large stack": (
        "import threading\nthreading.stack_size(64 << 20)\nout = []\n"
        "t = threading.Thread(target=out.append, args=(1,))\n"
        "t.start(); t.join()\n",
        "assert out == [1]",
    ),
    "signals of its own": (
        "import signal\nseen = []\nsignal.signal(signal.SIGALRM, lambda *_: seen.append(1))\n"
        "signal.raise_signal(signal.SIGALRM)\n",
        "assert seen == [1]",
    ),
    "coroutines": (
        "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 1\n",
        "assert asyncio.run(f()) == 1",
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f():\n"
        "    with ThreadPoolExecutor(4) as pool:\n"
        "        return sum(pool.map(abs, range(-4, 4)))\n",
        "assert f() == 16",
    ),
    "files": (
        "import os, pathlib, shutil, tempfile\nwith tempfile.TemporaryDirectory() as d:\n"
        "    pathlib.Path(d, 'a').write_text('x')\n    shutil.copyfile(d + '/a', 'b')\n"
        "    shutil.move('b', 'c')\n",
        "assert os.listdir('.') == ['c']",
    ),
}


@pytest.fixture(scope="module")
def programs():
    prompts = [prompt(tests, i) for i, (_, tests) in enumerate(PROGRAMS.values())]
    responses = [[f"```python\n{source}```"] for source, _ in PROGRAMS.values()]
    verdict = code(workers=2, timeout=20.0).ask(prompts, responses)
    return dict(zip(PROGRAMS, verdict.reward[:, 0].tolist(), strict=True))


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_right_program_scores_one(program, programs):
    assert programs[program] == 1.0
