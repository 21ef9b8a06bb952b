"""Semantic gates: they weaken a preference between two responses that mean the same.

A gate maps similarity S to the factor on P - 1/2: 1 keeps the verdict, 0 makes it a tie. S is first
cut to [-1,1], so rounding above 1 cannot flip a preference: no factor is negative.

S in [0,1] gives factors in [0,1]. This is the paper's rectified cosine (`relu_cosine`), and word
overlap (`token_jaccard`). A plain `cosine` may be negative. Then 1 - S is above 1, so `linear` and
`power` strengthen the verdict on two opposed responses, and the target may leave [0,1]. `threshold`
leaves the verdict as it is. Gates take NumPy and JAX arrays alike."""

from __future__ import annotations

from jaxtyping import Float

from ssppo_jax.errors import ConfigError
from ssppo_jax.types import Array


def linear(similarity: Float[Array, "*A"]) -> Float[Array, "*A"]:
    """Return 1 - S: the gate of S-SPPO (arXiv 2606.01561, section 3.1 and Algorithm 1).

    It is 2 at S = -1, which only a cosine that is not rectified reaches.
    """
    return 1.0 - similarity.clip(-1.0, 1.0)


def power(similarity: Float[Array, "*A"], *, exponent: float = 2.0) -> Float[Array, "*A"]:
    """Return (1 - S)^exponent.

    Above 1 it discounts weak similarity too; below 1 it acts on near-duplicates only. A
    reconstruction: the paper (appendix D.5) names non-linear gates as future work, without formula.
    At S = -1 it is 2^exponent.

    Args:
      exponent: power of 1 - S, positive; 1 is the linear gate
    """
    if not exponent > 0:
        raise ConfigError(
            f"gate power: exponent={exponent!r} must be > 0; 1.0 gives the linear gate"
        )
    return (1.0 - similarity.clip(-1.0, 1.0)) ** exponent


def threshold(similarity: Float[Array, "*A"], *, cutoff: float = 0.9) -> Float[Array, "*A"]:
    """Return 1 below the cutoff and 0 from it on: verdicts on near-duplicates become ties.

    A negative S gives 1 too, so this gate never strengthens a verdict.

    A reconstruction (see `power`); 0.9 is where the paper's figures 2 and 3 begin to count
    responses as alike.

    Args:
      cutoff: similarity from which a pair counts as a tie, in (0, 1]
    """
    if not 0 < cutoff <= 1:
        raise ConfigError(
            f"gate threshold: cutoff={cutoff!r} must be in (0, 1]; the default is 0.9"
        )
    return (similarity < cutoff).astype(similarity.dtype)


def calibrate(win_rate: Float[Array, "*#A"], factor: Float[Array, "*#A"]) -> Float[Array, "..."]:
    """Return P^c = 1/2 + factor * (P - 1/2) (S-SPPO eq. 3.1), which never passes a tie.

    A factor above 1 can give a P^c outside [0,1]. It is a regression target and is not cut.
    """
    return 0.5 + factor * (win_rate - 0.5)


GATES = {"linear": linear, "power": power, "threshold": threshold}
