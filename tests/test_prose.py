"""Docstrings of functions say in their first line, in the imperative, what the function does."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ssppo_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
# A question, a noun phrase, a formula, or the third person.
ANOTHER_MOOD = re.compile(
    r"(What|Whether|How|Where|Who|Why|The|A|An|All|Each|Every|[A-Z]\w*s) |[^A-Z]"
)


def summaries(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.name, text.split("\n")[0]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_functions_docstring_begins_in_the_imperative(file):
    exempt = {"Pass", "Process", "Address", "Access", "Discuss"}
    wrong = [
        (name, text)
        for name, text in summaries(file)
        if ANOTHER_MOOD.match(text) and text.split()[0] not in exempt and not is_formula(file)
    ]
    assert not wrong


def is_formula(file):
    """Losses, gates and advantages begin with their name and formula, as in their paper."""
    return file.parent.name == "losses"
