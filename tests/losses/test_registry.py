"""A loss is added by writing one function in one file."""

import sys

import pytest

from ssppo_jax import losses
from ssppo_jax.losses import preference


@pytest.fixture
def drop_in(monkeypatch, tmp_path):
    """Write a module that the losses package will find; forgotten again afterwards."""
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path)])
    written = []

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(f"ssppo_jax.losses.{name}", None)
        vars(losses).pop(name, None)


TOY = """
from ssppo_jax.losses.core import weighted_mean

def toy(policy, batch, *, scale: float = 2.0):
    return weighted_mean(scale * policy.logp.sum((1, 2)), batch.weight), {}

LOSSES = {"toy_loss": toy}
"""


def test_every_family_is_in_the_table():
    assert preference.LOSSES.items() <= losses.LOSSES.items()
    assert set(losses.discover()) == set(losses.LOSSES)


def test_a_toy_loss_in_one_new_file_is_selectable(drop_in):
    drop_in("toy_family", TOY)
    found = losses.discover()
    assert found["toy_loss"].__module__ == "ssppo_jax.losses.toy_family"
    assert set(found) == {*losses.LOSSES, "toy_loss"}


def test_a_name_claimed_twice_is_refused_with_both_owners(drop_in):
    drop_in("toy_family", TOY.replace("toy_loss", "dpo"))
    with pytest.raises(ValueError, match=r"'dpo' is in both .*\.preference and .*\.toy_family"):
        losses.discover()


def test_a_module_without_a_table_adds_nothing(drop_in):
    drop_in("toy_notes", "x = 1\n")
    assert set(losses.discover()) == set(losses.LOSSES)
