"""Choose each objective's rate from the grid, by the plan's rule.

    python experiments/stability/choose.py runs/stability experiments/stability/results

writes DIR/rates.json, which judged.py and fresh.py read."""

from __future__ import annotations

import sys
from pathlib import Path

from outcomes import best_rates, read_outcomes

from ssppo_jax.files import to_json, write_lines


def main(grid: Path, output: Path) -> None:
    rates = best_rates(read_outcomes(grid))
    write_lines(output / "rates.json", [to_json(rates)])
    print(rates)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
