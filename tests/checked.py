"""Check every call in losses, models and the sampler against its annotations, records included."""

import functools
from typing import Annotated, get_type_hints

from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from beartype.vale import Is

CONF = BeartypeConf(is_pep484_tower=True)  # an int is a float


def typechecked(function):
    """Return a function that refuses arguments and results of another type, shape or dtype.

    A letter such as B stands for one number within a call, in records and in arrays beside them.
    """
    for name, hint in function.__annotations__.items():
        if getattr(hint, "__module__", "") == "ssppo_jax.types" and hasattr(hint, "_fields"):
            function.__annotations__[name] = Annotated[hint, Is[fields_fit]]
    return beartype(conf=CONF)(function)


def fields_fit(record):
    """Say if the fields of a NamedTuple are what it states."""
    pairs = zip(record, _hints(type(record)), strict=True)
    return all(is_bearable(value, hint, conf=CONF) for value, hint in pairs)


@functools.cache
def _hints(record):
    hints = get_type_hints(record, include_extras=True)
    return [hints[name] for name in record._fields]
