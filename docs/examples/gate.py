"""A semantic gate of one's own: verdicts on responses that are hardly alike stay whole."""

from ssppo_jax.config import Unit, load_config
from ssppo_jax.losses import GATES
from ssppo_jax.schema import select
from ssppo_jax.types import Array


def ramp(similarity: Array, *, start: Unit = 0.5) -> Array:
    """Return 1 up to `start`, then a straight line to 0 at similarity 1.

    Args:
        start: similarity from which the verdict is pulled towards a tie
    """
    alike = (similarity - start) / max(1.0 - start, 1e-6)
    return 1.0 - alike.clip(0.0, 1.0)


GATES["ramp"] = ramp


def get_config():
    config = load_config("smoke")
    select(config, "pairs.gate", "ramp", start=0.6)
    return config
