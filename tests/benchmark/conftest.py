"""The HTTP judge of the oracles' tests serves the benchmarks' too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "oracles"))
