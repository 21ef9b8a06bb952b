"""The list of breaks that `make mutate` makes is whole: each still applies, and no loss or gate is
without one."""

from pathlib import Path

import mutants
import mutate
import pytest

from ssppo_jax.losses import LOSSES, group, opponent, preference, sft
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


TABLES = {
    "losses/preference.py": preference.LOSSES,
    "losses/group.py": group.LOSSES,
    "losses/opponent.py": opponent.LOSSES,
    "losses/ratio_gates.py": RATIO_GATES,
    "losses/gates.py": GATES,
    "losses/advantages.py": ADVANTAGES,
}


@pytest.mark.parametrize("file", TABLES)
def test_every_entry_of_a_table_has_a_mutant(file):
    assert set(TABLES[file]) <= {m.function for m in mutate.MUTANTS if m.file == file}


def test_no_family_of_losses_is_forgotten():
    """SFT has one line, which TRL's golden numbers hold (`test_trl_offline.py`)."""
    mutated = {name for file in list(TABLES)[:3] for name in TABLES[file]}
    assert set(LOSSES) == mutated | set(sft.LOSSES)


def test_a_mutant_whose_text_is_gone_or_stands_twice_is_an_error():
    row = ("f", "a", "b", "why")
    for source in ("def f():\n    return b\n", "def f():\n    return a + a\n", "a = 1\n"):
        with pytest.raises(ValueError, match="need 1"):
            mutate.broken(source, mutate.Mutant("x.py", *row))
    assert mutate.broken("a = 1\ndef f():\n    return a\n", mutate.Mutant("x.py", *row)).endswith(
        "return b\n"
    )
