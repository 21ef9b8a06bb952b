import sys

import pytest

from ssppo_jax import oracles
from ssppo_jax.errors import UserError


def package(tmp_path, monkeypatch, name, **modules):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return [str(folder)], name


def test_every_table_in_the_package_is_found_and_modules_without_one_are_no_oracles(tmp_path, monkeypatch):
    modules = dict(one="ORACLES = {'x': 1, 'y': 2}", two="ORACLES = {'z': 3}", no="")
    found = oracles.discover(*package(tmp_path, monkeypatch, "oracle_pack_a", **modules))
    assert found == {"x": 1, "y": 2, "z": 3}


def test_a_name_used_twice_names_both_files(tmp_path, monkeypatch):
    place = package(tmp_path, monkeypatch, "oracle_pack_b", one="ORACLES = {'x': 1}", two="ORACLES = {'x': 2}")
    with pytest.raises(UserError, match=r"'x'.*one\.py.*two\.py"):
        oracles.discover(*place)


def test_the_known_oracles_are_in_the_table():
    assert {"sentiment", "sentiment_overconfident", "length"} <= set(oracles.ORACLES)
