"""What is declared, what is locked and what is installed agree."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

import ssppo_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DECLARED = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
# The project is asked to have these at its core.
ASKED_FOR = {
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tensorflow-datasets",
    "ml-collections",
}


def lines_of(lock):
    lines = (ROOT / lock).read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def locked(lock="requirements.lock"):
    pins = dict(line.split("==") for line in lines_of(lock))
    return {canonicalize_name(name): version for name, version in pins.items()}


def not_within(texts, pins):
    """The requirements that no pin answers, or whose range leaves the pin out."""
    required = [Requirement(text) for text in texts]
    return [
        str(requirement)
        for requirement in required
        if pins.get(canonicalize_name(requirement.name), "none") not in requirement.specifier
    ]


def test_the_locks_pin_every_line_once():
    for lock in ("requirements.lock", "requirements-docs.lock"):
        assert all(re.fullmatch(r"[\w.-]+==[\w.!+-]+", line) for line in lines_of(lock))
        assert len(locked(lock)) == len(lines_of(lock))


def test_the_two_locks_pin_no_package_twice():
    assert not set(locked()) & set(locked("requirements-docs.lock"))


def test_the_range_of_every_direct_dependency_contains_the_locked_version():
    assert not_within(DECLARED, locked()) == []
    assert not_within(EXTRAS["dev"], locked()) == []
    assert not_within(EXTRAS["docs"], locked("requirements-docs.lock")) == []


def test_the_other_extras_agree_with_the_lock_where_it_has_them():
    pins = locked()
    others = [text for name in EXTRAS for text in EXTRAS[name] if name not in ("dev", "docs")]
    named = [text for text in others if canonicalize_name(Requirement(text).name) in pins]
    assert named and not_within(named, pins) == []


def test_dependencies_are_ranges_that_let_a_newer_patch_version_in():
    for text in DECLARED:
        specifier = Requirement(text).specifier
        pin = locked()[canonicalize_name(Requirement(text).name)].split(".")
        newer = ".".join([*pin[:2], str(int(pin[2]) + 1 if len(pin) > 2 else 1)])
        assert str(specifier) and newer in specifier, text


def test_the_asked_for_packages_are_at_the_core():
    assert {canonicalize_name(Requirement(text).name) for text in DECLARED} >= ASKED_FOR


def test_the_version_is_written_once_and_the_changelog_dates_it():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ssppo_jax.__version__"}
    version = re.escape(ssppo_jax.__version__)
    newest = re.search(r"^## (?!Unreleased$).*$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    assert re.fullmatch(rf"## {version} \(20\d\d-\d\d-\d\d\)", newest)
    citation = (ROOT / "CITATION.cff").read_text()
    date = newest[-11:-1]
    assert f"version: {ssppo_jax.__version__}\n" in citation and date in citation


def test_every_package_and_its_data_are_installed():
    settings = PROJECT["tool"]["setuptools"]
    folders = {f.parent for f in (ROOT / "ssppo_jax").rglob("*.py")}
    assert {str(f.relative_to(ROOT)).replace("/", ".") for f in folders} == set(
        find_packages(str(ROOT), include=settings["packages"]["find"]["include"])
    )
    data = {
        f
        for f in (ROOT / "ssppo_jax").rglob("*")
        if f.is_file() and f.suffix not in (".py", ".pyc")
    }
    installed = {
        f
        for pattern in settings["package-data"]["ssppo_jax"]
        for f in (ROOT / "ssppo_jax").glob(pattern)
    }
    assert data == installed and {".jsonl"} <= {f.suffix for f in data}


def test_the_configs_at_the_top_are_those_of_the_package():
    assert (ROOT / "configs").resolve() == (ROOT / "ssppo_jax" / "configs").resolve()


def test_pre_commit_and_the_lock_have_the_same_ruff():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"ruff==([\d.]+)", hooks)) == {locked()["ruff"]}


def test_make_help_has_a_line_for_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())
    rules = set(re.findall(r"^([a-z0-9]+):", makefile, re.M))
    told = set(re.findall(r"^([a-z0-9]+):.*## \S", makefile, re.M))
    assert targets == rules == told
