"""The shape of the package: imports point down, and what each floor may know."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ssppo_jax"
# Modules and packages. On floors 0 and 4 a module may also import those that stand before it on its own floor.
FLOORS = (
    "__init__ types errors rendezvous hosts progress config registry disk cores tpu",
    "buckets losses models parallel sampling chips memory chat optim checkpoint metrics lifecycle winrate",
    "weights generate data flops",
    "steps state oracles pairs groups similarity",
    "topology hlo compiled schema run_folder plots run_record report_page report_curves report_texts report runtime "
    "sample_phase judge_phase rollout pace score_phase assemble collect evaluate inference train planned_steps plan "
    "plan_table planner measure grid sweep_table sweep_plots sweep",
    "__main__",
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
ORDER = " ".join(FLOORS).split()
FILES = sorted(PACKAGE.rglob("*.py"))
EVERY = pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))


def noun(file):
    """The module of the package, or the sub-package, that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file):
    """Dotted names a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file.name}:{node.lineno}: write the import with its full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def nouns_used(file):
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "ssppo_jax" and len(parts) > 1:
            yield parts[1] if parts[1] in FLOOR else "__init__"  # `from ssppo_jax import __version__`


@EVERY
def test_every_module_has_a_floor_and_imports_only_from_below(file):
    me = noun(file)
    assert me in FLOOR, f"{me} is on no floor: enter it in FLOORS"
    for other in set(nouns_used(file)) - {me}:
        beside = FLOOR[other] == FLOOR[me] in (0, 4) and ORDER.index(other) < ORDER.index(me)
        assert FLOOR[other] < FLOOR[me] or beside, f"{me} (floor {FLOOR[me]}) imports {other} (floor {FLOOR[other]})"


@EVERY
def test_flax_stays_in_models_and_config_dicts_on_the_floors_that_may_open_them(file):
    used = {name.split(".")[0] for name in imports(file)}
    assert "flax" not in used or noun(file) == "models"
    assert "ml_collections" not in used or noun(file) == "config" or FLOOR[noun(file)] >= 4


@EVERY
def test_files_have_one_noun_and_can_be_read_in_one_sitting(file):
    assert file.stem not in ("utils", "util", "helpers", "misc", "common")
    assert len(file.read_text().splitlines()) <= 500


def test_the_package_knows_nothing_of_configs_experiments_and_tests():
    above = {"configs", "experiments", "tests", "benchmarks"}
    assert not {f for f in FILES if above & {name.split(".")[0] for name in imports(f)}}


def test_every_name_on_a_floor_exists():
    assert set(FLOOR) == {noun(file) for file in FILES}
