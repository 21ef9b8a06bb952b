"""Say where a run is between two commands."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Position:
    """Hold where a run is: all that a resume needs except the arrays."""

    iteration: int = 0
    step_in_iteration: int = 0
