"""The shape of the package: imports point to the left of one line, and never in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ssppo_jax"
# A room (a module or a folder of the package) may import every room to the left of its bar.
RULE = (
    "__init__ types errors | files config | optimizer data models distributed"
    " | losses sampling weights steps runs | oracles runtime | rollout"
    " | schema evaluate | training inference sweep configs benchmark plan | __main__"
)
FLOOR = {room: n for n, rooms in enumerate(RULE.split("|")) for room in rooms.split()}
FILES = sorted(PACKAGE.rglob("*.py"))
EVERY = pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))


def room(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(file):
    """Dotted names that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file.name}:{node.lineno}: write the import with its full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_files(file):
    """Files of the package that a file imports."""
    for name in imported_names(file):
        parts = name.split(".")
        if parts[0] == "ssppo_jax":
            yield next(found for found in _candidates(parts) if found.is_file())


def _candidates(parts):
    for n in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[1:n])
        yield from (path.with_suffix(".py"), path / "__init__.py")


@EVERY
def test_a_room_imports_only_rooms_to_the_left_of_its_bar(file):
    me = room(file)
    assert me in FLOOR, f"enter {me} in RULE"
    for other in {room(found) for found in imported_files(file)} - {me}:
        assert FLOOR[other] < FLOOR[me], f"{me} may not import {other}: see RULE"


def test_no_file_imports_itself_by_way_of_others():
    try:
        TopologicalSorter({file: set(imported_files(file)) - {file} for file in FILES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(str(file.relative_to(PACKAGE)) for file in error.args[1]))


@EVERY
def test_flax_stays_in_models_and_no_file_is_called_utils(file):
    assert (
        "flax" not in {name.split(".")[0] for name in imported_names(file)}
        or room(file) == "models"
    )
    assert file.stem not in ("utils", "util", "helpers", "misc", "common")


def test_the_package_knows_nothing_of_experiments_and_tests():
    above = {"experiments", "tests", "benchmarks"}
    assert not {f for f in FILES if above & {name.split(".")[0] for name in imported_names(f)}}


def test_every_room_in_the_rule_exists():
    assert set(FLOOR) == {room(file) for file in FILES}


def test_the_house_stays_small_at_the_top():
    assert len(set(FLOOR) - {"__init__"}) <= 25 and len(RULE.split("|")) <= 9


ROOT = PACKAGE.parent
OURS = [
    f
    for room in ("ssppo_jax", "experiments", "benchmarks", "docs")
    for f in ROOT.glob(f"{room}/**/*.py")
]


def text_calls(tree):
    """Calls that read or write text, each with the number of arguments before `encoding`."""
    before = {"open": 3, "read_text": 0, "write_text": 1}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            method = isinstance(node.func, ast.Attribute)
            name = node.func.attr if method else node.func.id
            if name not in before or (method and ast.unparse(node.func.value) == "os"):
                continue
            place = before[name] - (method and name == "open")
            modes = [*node.args[place - 2 : place - 1], *(k.value for k in node.keywords)]
            if name != "open" or "b" not in "".join(
                str(mode.value) for mode in modes if isinstance(mode, ast.Constant)
            ):
                yield node, place


@pytest.mark.parametrize("file", OURS, ids=lambda f: str(f.relative_to(ROOT)))
def test_text_has_an_encoding_whatever_the_locale_says(file):
    """Under LC_ALL=POSIX `open` may mean ASCII: it empties the file and then fails."""
    for node, place in text_calls(ast.parse(file.read_text(encoding="utf-8"))):
        given = len(node.args) > place or "encoding" in {k.arg for k in node.keywords}
        assert given, f"{file}:{node.lineno}: give {ast.unparse(node)} an encoding"


@pytest.mark.parametrize("file", OURS, ids=lambda f: str(f.relative_to(ROOT)))
def test_records_are_cut_into_lines_in_one_place(file):
    """`splitlines` and text files also cut at U+2028 and others, which stand inside of records."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in ("splitlines", "readlines"):
            read = {n.attr for n in ast.walk(node.value) if isinstance(n, ast.Attribute)}
            bad = node.attr == "readlines" or read & {"read_text", "read_bytes", "read"}
            assert not bad, f"{file}:{node.lineno}: use ssppo_jax.files.read_records"


def test_no_two_test_files_share_a_name():
    """Pytest imports a test file by its bare name, so the second of two would not be collected."""
    found = Path(__file__).parent.rglob("*.py")
    names = [file.name for file in found if file.name != "conftest.py"]
    assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})
