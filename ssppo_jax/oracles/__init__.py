"""Oracles: who says which response is better. `ORACLES` maps a name to a factory of keyword-only
parameters.

Every module of this package that has a module-level `ORACLES` table is found here, so an oracle is
added by writing one file. See `protocol` for what an oracle is."""

from ssppo_jax.config import discover

ORACLES = discover(__path__, __name__, "ORACLES")
