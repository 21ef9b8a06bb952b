"""The table of identities in tests/README.md names the tests that claim them, all of them, and no
others."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
ROW = re.compile(r"^\| (\d+) \| .* \| (.*) \|$", re.M)


def claimed():
    """{n: tests whose docstring says "Identity n"}, by file and line."""
    found = {}
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for n in re.findall(r"\bIdentity (\d+)", ast.get_docstring(node) or ""):
                    found.setdefault(int(n), []).append(f"{file.relative_to(TESTS)}::{node.name}")
    return found


def test_every_identity_is_claimed_by_the_tests_that_the_readme_names():
    written = {
        int(n): re.findall(r"`(\S+)`", tests)
        for n, tests in ROW.findall((TESTS / "README.md").read_text())
    }
    for n, tests in claimed().items():
        assert written.get(n) == tests, (
            f"row {n} of tests/README.md must end with {', '.join(f'`{t}`' for t in tests)}"
        )
    assert sorted(written) == list(range(1, 27)) and all(written.values())
