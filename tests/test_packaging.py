"""What is installed is what was tested."""

import re
import runpy
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ssppo_jax

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def setup_arguments():
    """The keyword arguments of setup.py's call of setup()."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: found.update(arguments))
        patch.chdir(ROOT)
        runpy.run_path(str(ROOT / "setup.py"))
    return found


def locked():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line.strip() and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins.items()}


def test_the_lock_pins_every_line_once():
    lines = [
        x
        for x in (ROOT / "requirements.lock").read_text().splitlines()
        if x.strip() and not x.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+-]+", line) for line in lines)
    assert len(locked()) == len(lines)


def test_every_direct_dependency_is_pinned_to_what_the_lock_has(setup_arguments):
    pins, wrong = locked(), []
    for text in setup_arguments["install_requires"]:
        requirement = Requirement(text)
        version = pins.get(canonicalize_name(requirement.name), "")
        if str(requirement.specifier) != f"=={version}":
            wrong.append(f"setup.py {text}, lock {version or 'nothing'}")
    assert not wrong and len(setup_arguments["install_requires"]) > 10


def test_pinned_extras_agree_with_the_lock(setup_arguments):
    pins = locked()
    for texts in setup_arguments["extras_require"].values():
        for requirement in map(Requirement, texts):
            version = pins.get(canonicalize_name(requirement.name))
            assert version is None or str(requirement.specifier) in ("", f"=={version}")


def test_the_version_is_written_once(setup_arguments):
    assert setup_arguments["version"] == ssppo_jax.__version__
    assert f"## {ssppo_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_package_and_its_prompts_are_installed(setup_arguments):
    folders = {f.parent for f in (ROOT / "ssppo_jax").rglob("*.py")}
    assert {str(f.relative_to(ROOT)).replace("/", ".") for f in folders} == set(
        setup_arguments["packages"]
    )
    data = {
        f
        for f in (ROOT / "ssppo_jax").rglob("*")
        if f.is_file() and f.suffix not in (".py", ".pyc")
    }
    installed = {
        f
        for pattern in setup_arguments["package_data"]["ssppo_jax"]
        for f in (ROOT / "ssppo_jax").glob(pattern)
    }
    assert data == installed and {".jsonl"} <= {f.suffix for f in data}
