"""Ratio gates in float64, from the table of formulas (ALGORITHMS, sections 3.2 and 5)."""

import math


def exact(name, u, tau):
    """f at the log-ratio u."""
    r = math.exp(u)
    return {
        "sigmoid": lambda: 4 / tau / (1 + math.exp(-tau * (r - 1))),
        "sigmoid_norm": lambda: 1 + 4 / tau * (1 / (1 + math.exp(-tau * (r - 1))) - 0.5),
        "arctan": lambda: 1 + math.atan(tau * (r - 1)) / tau,
        "erf": lambda: (
            1 + math.sqrt(math.pi / (2 * tau**2)) * math.erf(tau * (r - 1) / math.sqrt(2))
        ),
        "softsign": lambda: 1 + (r - 1) / math.sqrt(1 + tau**2 * (r - 1) ** 2),
        "arctan_log": lambda: math.exp(math.atan(tau * u) / tau),
        "arctan_log_affine": lambda: 1 + math.atan(tau * u) / tau,
        "log_clip": lambda: math.exp(min(max(u, -math.pi / (2 * tau)), math.pi / (2 * tau))),
        "identity": lambda: r,
    }[name]()
