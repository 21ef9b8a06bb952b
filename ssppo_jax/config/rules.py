"""Say which values a key allows. A rule returns None where the value is fine."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from typing import Annotated, Any

Rule = Callable[[Any], str | None]  # value -> what is allowed, or None when the value is fine


def positive(x) -> str | None:
    return None if x > 0 else "a number above 0"


def non_negative(x) -> str | None:
    return None if x >= 0 else "0 or more"


def unit(x) -> str | None:
    return None if 0 <= x <= 1 else "between 0 and 1"


def fraction(x) -> str | None:
    return None if 0 < x <= 1 else "above 0 and at most 1"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Allow some values; `--help` lists them."""

    allowed: tuple

    def __call__(self, x: Any) -> str | None:
        return None if x in self.allowed else "one of " + ", ".join(map(repr, self.allowed))


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Check by another rule; a message does not show the value, which may hold a password."""

    rule: Rule

    def __call__(self, x: Any) -> str | None:
        return self.rule(x)


def one_of(*allowed) -> Rule:
    return OneOf(allowed)


def increasing(x) -> str | None:
    ok = len(x) > 0 and all(isinstance(v, int) and v > 0 for v in x) and list(x) == sorted(set(x))
    return None if ok else "increasing positive integers, e.g. (64,128,256)"


def iso_date(x) -> str | None:
    try:
        ok = datetime.date.fromisoformat(x).isoformat() == x
    except ValueError:
        ok = False
    return None if ok else "a date, such as 2024-07-26"


Unit = Annotated[float, unit]
Positive = Annotated[float, positive]
NonNegative = Annotated[float, non_negative]
