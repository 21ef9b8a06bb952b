"""Every loss by name. A family is one module of this package with a table `LOSSES = {"name": function}`.

To add a loss, write one function in one file here and put it in that file's table: the name is then selectable and its
keyword-only parameters are its configuration keys. A loss is
`loss(policy: Policy, batch: Batch, *, hyper=default, ...) -> (Mean, Metrics)`, pure, on arrays alone.
"""

from ssppo_jax.registry import discover

LOSSES = discover(__path__, __name__, "LOSSES")
