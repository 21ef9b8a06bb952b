"""The list of breaks that `make mutate` makes is whole: each still applies, and no loss or gate is without one."""

from pathlib import Path

import mutate
import mutants
import pytest

from ssppo_jax.losses import LOSSES
from ssppo_jax.losses.advantages import ADVANTAGES
from ssppo_jax.losses.gates import GATES
from ssppo_jax.losses.ratio_gates import RATIO_GATES

PACKAGE = Path(mutate.ROOT) / "ssppo_jax"


@pytest.mark.parametrize("file", mutants.FILES)
def test_every_mutant_is_another_program(file):
    """Whoever rewrites a line that a mutant breaks, rewrites the mutant."""
    source = (PACKAGE / file).read_text()
    made = [mutate.broken(source, m) for m in mutate.MUTANTS if m.file == file]
    assert source not in made and len(set(made)) == len(made) > 10


def test_every_loss_gate_and_advantage_has_a_mutant():
    broken = {m.function for m in mutate.MUTANTS}
    assert {*LOSSES, *ADVANTAGES, *GATES, *RATIO_GATES} <= broken


def test_a_mutant_whose_text_is_gone_or_stands_twice_is_an_error():
    row = ("f", "a", "b", "why")
    for source in ("def f():\n    return b\n", "def f():\n    return a + a\n", "a = 1\n"):
        with pytest.raises(ValueError, match="need 1"):
            mutate.broken(source, mutate.Mutant("x.py", *row))
    assert mutate.broken("a = 1\ndef f():\n    return a\n", mutate.Mutant("x.py", *row)).endswith("return b\n")
