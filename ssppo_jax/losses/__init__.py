"""Find every loss, gate and advantage by name.

Each module of this package may have the tables `LOSSES`, `GATES` (semantic gates), `RATIO_GATES`
and `ADVANTAGES`, which map names to functions. To add one, write one file here with one table: the
name is then selectable and the keyword-only parameters are its configuration keys.

A loss is `loss(policy: Policy, batch: Batch, *, hyper=default, ...) -> (Mean, Metrics)`, pure, on
arrays alone. Its module says in `ROWS` which rows it learns from:

    "pair"      (default) winner at 0 and loser at 1, selected from K samples by preferences
    "group"     all K samples with their advantages, from rewards
    "opponent"  a sample of the policy at 0 and one of its opponent at 1, whoever wins
    "response"  one response at 0: a demonstration, or the best of K

`TIES` of a module names the pair losses that learn from a tie, and what they learn. The other pair
losses have a hard label, which a tie does not have: a tied pair has weight 0 there
(`pairs.train_ties`).

`COMPANIONS` of a module maps a loss's name to the keys outside the loss that belong to its
published method. Choosing the loss sets them, and a run says where it departs from them.
"""

from types import ModuleType

from ssppo_jax.config import constants, discover
from ssppo_jax.errors import ConfigError

ROW_KINDS = ("pair", "group", "opponent", "response")
LOSSES = discover(__path__, __name__, "LOSSES")
GATES = discover(__path__, __name__, "GATES")
RATIO_GATES = discover(__path__, __name__, "RATIO_GATES")
ADVANTAGES = discover(__path__, __name__, "ADVANTAGES")
TIES = discover(__path__, __name__, "TIES")
COMPANIONS = discover(__path__, __name__, "COMPANIONS")
ROWS = constants(__path__, __name__, "LOSSES", "ROWS", "pair")


def _adopt(name: str, module: ModuleType) -> None:
    """Take over what a plug-in's or a user's module says of its loss."""
    own, rows = name.rpartition(":")[2], getattr(module, "ROWS", "pair")
    rows = rows.get(own, "pair") if isinstance(rows, dict) else rows  # {name: rows}, or one word
    if rows not in ROW_KINDS:
        raise ConfigError(f"{module.__file__}: ROWS = {rows!r}; allowed: {', '.join(ROW_KINDS)}")
    ROWS[name] = rows
    for table, known in ((TIES, "TIES"), (COMPANIONS, "COMPANIONS")):
        table.pop(name, None)  # of the file as it was
        if own in getattr(module, known, {}):
            table[name] = getattr(module, known)[own]


LOSSES.entered.append(_adopt)
