"""Every loss by name. A family is one module of this package with a table `LOSSES = {"name":
function}`.

To add a loss, write one function in one file here and put it in that file's table: the name is then
selectable and its keyword-only parameters are its configuration keys. A loss is `loss(policy:
Policy, batch: Batch, *, hyper=default, ...) -> (Mean, Metrics)`, pure, on arrays alone.

A module says in `ROWS` what a row of its batch holds, and so how a rollout is assembled for it:

    "pair"      (default) winner at 0 and loser at 1, selected from K samples by preferences
    "group"     all K samples with their advantages, from rewards
    "opponent"  a sample of the policy at 0 and one of its opponent at 1, in this order whoever wins

and in `COMPANIONS` which keys outside the loss belong to a published method, by the loss's name.
Choosing the loss sets them, and a run says where it departs from them."""

from ssppo_jax.config import constants, discover

ROW_KINDS = ("pair", "group", "opponent")
LOSSES = discover(__path__, __name__, "LOSSES")
COMPANIONS = discover(__path__, __name__, "COMPANIONS")
ROWS = constants(__path__, __name__, "LOSSES", "ROWS", "pair")
