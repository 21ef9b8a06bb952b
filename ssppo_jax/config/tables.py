"""Hold functions by name: those of a room's files, of plug-ins, and of a user's own files."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from ssppo_jax.config.nodes import nearest
from ssppo_jax.config.user_code import OWN, load_function
from ssppo_jax.errors import ConfigError, UserError


class Table(dict[str, Callable]):
    """Hold a room's functions by name. Functions from elsewhere enter when they are chosen.

    A plug-in is an entry point that an installed package has in the group `ssppo_jax.losses` (or
    `oracles`, `sources`, ...). A function of a user's file is named path/to/file.py:function. A
    name that the package has is not replaced.
    """

    def __init__(self, found: Mapping[str, Callable], group: str):
        super().__init__(found)
        self.group = group
        # called with each newcomer, which they may refuse
        self.entered: list[Callable[[str, ModuleType], None]] = []

    @functools.cached_property
    def plugins(self) -> dict[str, importlib.metadata.EntryPoint]:
        """Return the entry points of installed packages by name."""
        found = importlib.metadata.entry_points(group=f"ssppo_jax.{self.group}")
        return {point.name: point for point in found if point.name not in self}

    def enter(self, name: str) -> None:
        """Enter the plug-in, or the function of a user's file, that a name means; else nothing."""
        if OWN.fullmatch(name):
            function = load_function(name)
        elif name not in self and name in self.plugins:
            function = _plugin(self.plugins[name])
        else:
            return
        if self.get(name) is not function:
            for hear in self.entered:
                hear(name, sys.modules[function.__module__])
            self[name] = function


def _plugin(point: importlib.metadata.EntryPoint) -> Callable:
    try:
        return point.load()
    except Exception as error:  # whatever another package can raise
        package = point.dist.name if point.dist else "a package"
        raise ConfigError(
            f"{point.name!r} is a plug-in of {package} ({point.value}), which does not load:"
            f" {type(error).__name__}: {error}"
        ) from error


def entry(table: Mapping[str, Callable], name: str) -> Callable:
    """Return the function of a name; one from elsewhere enters the table.

    Raises:
      ConfigError: no such name; the nearest one is named.
    """
    if isinstance(table, Table) and name not in table:
        table.enter(name)
    if name not in table:
        if name.endswith(".py"):
            raise ConfigError(f"{name!r} is a file; name its function, as in {name}:FUNCTION")
        raise ConfigError(
            f"{name!r} is not known; {nearest(name, known(table))}allowed: {choices(table)}"
        )
    return table[name]


def known(table: Mapping[str, Callable]) -> list[str]:
    """Return the names of a table, plug-ins included."""
    return sorted({*table, *(table.plugins if isinstance(table, Table) else ())})


def choices(table: Mapping[str, Callable]) -> str:
    """Return what may be chosen of a table, as a message lists it."""
    own = "; or path/to/file.py:FUNCTION" if isinstance(table, Table) else ""
    return ", ".join(known(table)) + own


def discover(paths: Iterable[str], package: str, table: str) -> Table:
    """Merge the module-level `table` dicts (e.g. "LOSSES") of all modules in a package.

    Raises:
        UserError: two modules use one name, so a configuration would be ambiguous.
    """
    found: dict[str, Callable] = {}
    owner: dict[str, str] = {}
    for module in _modules(paths, package):
        for name, function in getattr(module, table, {}).items():
            if name in found:
                raise UserError(
                    f"{name!r} is in the {table} of both {owner[name]} and {module.__name__}:"
                    " rename one"
                )
            found[name], owner[name] = function, module.__name__
    return Table(found, table.lower())


def constants(
    paths: Iterable[str], package: str, table: str, constant: str, default: Any
) -> dict[str, Any]:
    """Return each table entry's module-level `constant`, or `default` where its module has none."""
    return {
        name: getattr(module, constant, default)
        for module in _modules(paths, package)
        for name in getattr(module, table, {})
    }


def _modules(paths: Iterable[str], package: str) -> Iterator[ModuleType]:
    for info in sorted(pkgutil.iter_modules(paths), key=lambda info: info.name):
        yield importlib.import_module(f"{package}.{info.name}")
