"""Tables of plain functions by name, gathered from the modules of a package: adding one function touches one file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from ssppo_jax.errors import UserError


def discover(paths: Iterable[str], package: str, table: str) -> dict[str, Callable]:
    """The merged module-level `table` dicts (e.g. "LOSSES") of all modules in a package; a module may have none.

    Raises:
        UserError: two modules use one name: which of the two a configuration meant could not be known.
    """
    found: dict[str, Callable] = {}
    owner: dict[str, str] = {}
    for module in _modules(paths, package):
        for name, function in getattr(module, table, {}).items():
            if name in found:
                raise UserError(f"{name!r} is in the {table} of both {owner[name]} and {module.__name__}: rename one")
            found[name], owner[name] = function, module.__name__
    return found


def constants(paths: Iterable[str], package: str, table: str, constant: str, default: Any) -> dict[str, Any]:
    """What the module of each table entry says in its module-level `constant`, by entry; else `default`."""
    return {
        name: getattr(module, constant, default)
        for module in _modules(paths, package)
        for name in getattr(module, table, {})
    }


def _modules(paths: Iterable[str], package: str) -> Iterator[ModuleType]:
    for info in sorted(pkgutil.iter_modules(paths), key=lambda info: info.name):
        yield importlib.import_module(f"{package}.{info.name}")
