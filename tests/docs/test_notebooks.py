"""The notebooks are stored without outputs, and what they use of the package exists.

`make notebooks` executes them."""

import ast
import importlib
import json
from pathlib import Path

import pytest

from ssppo_jax import schema

FOLDER = Path(__file__).parents[2] / "notebooks"
BOOKS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.ipynb"))}
EVERY = pytest.mark.parametrize("name", BOOKS)


def code_of(book):
    """The code cells, without the magic in the first line of a cell that writes a file."""
    cells = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    return [c.partition("\n")[2] if c.startswith("%%writefile ") else c for c in cells]


def test_there_are_two():
    assert set(BOOKS) == {"first_run", "your_own_loss"}


@EVERY
def test_it_is_nbformat_4_without_outputs(name):
    book = BOOKS[name]
    assert book["nbformat"] == 4 and book["nbformat_minor"] == 5
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in book["cells"]:
        assert cell["cell_type"] in ("markdown", "code") and isinstance(cell["source"], list)
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@EVERY
def test_each_cell_compiles_and_each_name_of_the_package_exists(name):
    used = 0
    for cell in code_of(BOOKS[name]):
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "ssppo_jax":
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), node.module
                used += len(node.names)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ssppo_jax":
                assert hasattr(importlib.import_module("ssppo_jax"), node.attr), node.attr
                used += 1
    assert used > 4


@EVERY
@pytest.mark.parametrize("devices", [1, 8])  # a laptop, a TPU v5e-8
def test_each_config_runs_on_one_device_and_on_eight(name, devices, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checked, known = 0, {}
    for cell in BOOKS[name]["cells"]:
        magic, _, rest = "".join(cell["source"]).partition("\n")
        if magic.startswith("%%writefile "):
            (tmp_path / magic.split()[1]).write_text(rest, encoding="utf-8")
    for cell in code_of(BOOKS[name]):
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                known[node.targets[0].id] = ast.literal_eval(node.value)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "ssppo_jax.configure":
                config, keys = (eval(ast.unparse(part), {}, known) for part in node.args)
                given = {k: v if isinstance(v, str) else repr(v) for k, v in keys.items()}
                schema.load(config, given, devices)
                checked += 1
    assert checked


@EVERY
def test_the_first_cell_installs_and_the_text_says_what_to_change_elsewhere(name):
    book = BOOKS[name]
    assert code_of(book)[0].startswith("# Nothing happens here where the package is importable")
    text = "".join("".join(c["source"]) for c in book["cells"] if c["cell_type"] == "markdown")
    assert "**Colab.**" in text and "**Kaggle, TPU v5e-8.**" in text
