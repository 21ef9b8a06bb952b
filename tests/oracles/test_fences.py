"""Code is found in the fences that models write: in lists, of tildes, around docstrings with
fences. The right code is CommonMark's reading (its specification, section 4.5)."""

import time

import pytest

from ssppo_jax.oracles.code import code_of
from ssppo_jax.oracles.fences import blocks

ADD = "def add(a, b):\n    return a + b\n"
DOC = 'def add(a, b):\n    """\n    ```\n    add(1, 2)\n    ```\n    """\n    return a + b\n'
FLAT = "'''\nUse:\n```\nadd(1, 2)\n```\n'''\n" + ADD


def indented(text, spaces):
    return "".join(spaces + line for line in text.splitlines(keepends=True))


FOUND = {
    "in a list": (f"1. Here:\n   ```python\n{indented(ADD, '   ')}   ```\nDone", ADD),
    "in a deeper list": (f"- a\n    - b\n\n      ```py\n{indented(ADD, ' ' * 6)}      ```", ADD),
    "beside the number": (f"1. ```python\n{indented(ADD, '   ')}   ```", ADD),
    "in a quotation": (f"> ```python\n{indented(ADD, '> ')}> ```", ADD),
    "of tildes": (f"~~~python\n{ADD}~~~\n", ADD),
    "of four": (f"````python\n{ADD}````\n", ADD),
    "of four around three": (f"````python\n{FLAT}````\n", FLAT),
    "tildes around backticks": (f"~~~\n{FLAT}~~~\n", FLAT),
    "an indented docstring": (f"```python\n{DOC}```\nDone.", DOC),
    "a docstring at the margin": (f"```python\n{FLAT}```\nDone.", FLAT),
    "quotes in a comment": (
        f"```python\n# it's ''' here\n{ADD}```\n'''",
        "# it's ''' here\n" + ADD,
    ),
    "quotes in a string": (f"```python\nq = \"'''\"\n{ADD}```\n'''", "q = \"'''\"\n" + ADD),
    "a docstring never closed": (f"```python\n{ADD}'''\n```\nend", ADD + "'''\n"),
    "cut off": (f"Sure:\n```python\n{ADD}", ADD),
    "with attributes": (f"```python title=a.py\n{ADD}```", ADD),
    "of pandoc": (f"```{{.python}}\n{ADD}```", ADD),
    "a version": (f"```Python 3\n{ADD}```\n```text\n3\n```", ADD),
    "with line ends of Windows": ("```python\r\nx = 1\r\n```\r\n", "x = 1\n"),
    "before its use": (f"```python\n{ADD}```\nUse it:\n```python\nprint(add(1, 2))\n```", ADD),
    "before its output": (f"```python\n{ADD}```\n```\n3\n```", ADD),
    "the last of two": (f"```python\ndef add(a, b): pass\n```\nNo:\n```python\n{ADD}```", ADD),
    "inline code is none": (f"Use ```add``` so:\n```python\n{ADD}```", ADD),
    "beside a dash": ("- ```py\n  x = 1\n  ```", "x = 1\n"),
    "closed by more": (f"```python\n{ADD}`````\n", ADD),
    "not closed by less": (f"````python\n{ADD}```\n", f"{ADD}```\n"),
    "with a class": (f"```{{.python .numberLines}}\n{ADD}```\n```\n3\n```", ADD),
    "before its tests": (
        f"```python\n{ADD}```\n```python\ndef test_add():\n    assert add(1, 2)\n```",
        ADD,
    ),
    "after a session": (f"```pycon\n>>> add(1, 2)\n```\n```py\n{ADD}```", ADD),
    "after a shell": (f"```bash\npip install x\n```\n```\n{ADD}```", ADD),
    "a line separator": ("```python\nx = '\u2028'\n```", "x = '\u2028'\n"),
    "behind a tab": ("\t```python\n\tx = 1\n\t```", "x = 1\n"),
    "that is broken": ("```python\ndef f(:\n```\nAnd then\n```text\nout\n```", "def f(:\n"),
    "empty": ("```python\n```", ""),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_code_in_a_fence_is_found(case):
    text, code = FOUND[case]
    assert code_of(text, "auto") == code_of(text, "fenced") == code


@pytest.mark.parametrize(
    "piece", ["```\n", "~~~\n", "```python\n'''\n", "'''", "> ", "1. ", '"\\', "`"]
)
def test_fences_without_end_are_read_quickly(piece):
    start = time.process_time()
    blocks(piece * (100_000 // len(piece)))
    assert time.process_time() - start < 2
