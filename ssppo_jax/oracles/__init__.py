"""Oracles: who says which response is better. `ORACLES` maps a name to a factory of keyword-only parameters.

Every module of this package that has a module-level `ORACLES` table is found here, so an oracle is added by writing
one file. See `protocol` for what an oracle is.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable

from ssppo_jax.errors import UserError
from ssppo_jax.oracles.protocol import Factory


def discover(paths: Iterable[str], package: str) -> dict[str, Factory]:
    """The merged `ORACLES` tables of all modules in a package.

    Raises:
        UserError: two modules use the same oracle name.
    """
    table: dict[str, Factory] = {}
    owner: dict[str, str] = {}
    for found in sorted(pkgutil.iter_modules(paths), key=lambda module: module.name):
        module = importlib.import_module(f"{package}.{found.name}")
        for name, factory in getattr(module, "ORACLES", {}).items():
            if name in table:
                raise UserError(f"the oracle name {name!r} is used by {owner[name]}.py and {found.name}.py: rename one")
            table[name], owner[name] = factory, found.name
    return table


ORACLES = discover(__path__, __name__)
