"""Oracles: who says which response is better. `ORACLES` maps a name to a factory of `Oracle`.

Every module of this package with a module-level table `ORACLES` is found here, so an oracle is
added by writing one file. `protocol` shows one."""

from ssppo_jax.config import discover

ORACLES = discover(__path__, __name__, "ORACLES")
