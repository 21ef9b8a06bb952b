"""A loss or an oracle is added by writing one function in one file."""

import sys

import pytest

from ssppo_jax import config as cfg
from ssppo_jax import losses, oracles
from ssppo_jax.config import discover
from ssppo_jax.errors import UserError
from ssppo_jax.losses import group, preference


@pytest.fixture
def package(tmp_path, monkeypatch):
    """package(one="source", ...) -> (paths, name) of a new package with these modules, forgotten
    again afterwards."""
    name = "pack_for_the_registry"

    def write(**modules):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        for module, text in modules.items():
            (tmp_path / name / f"{module}.py").write_text(text)
        return [str(tmp_path / name)], name

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    for module in [m for m in sys.modules if m.startswith(name)]:
        del sys.modules[module]


TOY = """
from ssppo_jax.losses.core import weighted_mean

def toy(policy, batch, *, scale: float = 2.0):
    \"\"\"A toy.

    Args:
        scale: how much
    \"\"\"
    return weighted_mean(scale * policy.logp.sum((1, 2)), batch.weight), {}

LOSSES = {"toy_loss": toy}
"""


def test_every_table_is_found_and_modules_without_one_add_nothing(package):
    place = package(
        one="LOSSES = {'x': 1, 'y': 2}", two="LOSSES = {'z': 3}", other="ORACLES = {'o': 4}", no=""
    )
    assert discover(*place, "LOSSES") == {"x": 1, "y": 2, "z": 3}


def test_a_name_used_twice_names_both_files(package):
    place = package(one="LOSSES = {'x': 1}", two="LOSSES = {'x': 2}")
    with pytest.raises(UserError, match=r"'x' is in the LOSSES of both .*\.one and .*\.two"):
        discover(*place, "LOSSES")


def test_a_toy_loss_in_one_new_file_is_selectable_and_its_keyword_overridable(package):
    table = discover(*package(toy_family=TOY), "LOSSES")
    loss = cfg.Component("loss", table, "toy_loss", "the objective")
    config = cfg.build((), (loss,))
    assert cfg.override(config, {"loss.scale": "3"}, (loss,)) == []
    assert cfg.call_kwargs(table, config.loss) == {"scale": 3.0}
    assert "how much" in cfg.help_text((), (loss,), config)


def test_the_families_and_the_known_oracles_are_in_the_tables():
    assert preference.LOSSES.items() <= losses.LOSSES.items()
    assert group.LOSSES.items() <= losses.LOSSES.items()
    assert {"sentiment", "sentiment_overconfident", "length"} <= set(oracles.ORACLES)
