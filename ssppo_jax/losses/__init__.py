"""Every loss by name. A family is one module of this package with a table `LOSSES = {"name": function}`.

To add a loss, write one function in one file here and put it in that file's table: the name is then selectable and its
keyword-only parameters are its configuration keys. A loss is
`loss(policy: Policy, batch: Batch, *, hyper=default, ...) -> (Mean, Metrics)`, pure, on arrays alone.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable


def discover() -> dict[str, Callable]:
    """Merge the `LOSSES` table of every module in this package.

    Raises ValueError when two modules claim one name: which of the two a configuration meant could not be known.
    """
    found: dict[str, Callable] = {}
    owner: dict[str, str] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, function in getattr(module, "LOSSES", {}).items():
            if name in found:
                raise ValueError(f"loss {name!r} is in both {owner[name]} and {module.__name__}: rename one of them")
            found[name], owner[name] = function, module.__name__
    return found


LOSSES = discover()
