"""Say what in a configuration that runs can lead to a wrong conclusion."""

from __future__ import annotations

from ml_collections import ConfigDict

from ssppo_jax.data import GIVEN
from ssppo_jax.losses import LOSSES, ROWS
from ssppo_jax.optimizer import rounding_of


def cautions(config: ConfigDict) -> list[str]:
    """Say what in a configuration that runs can lead to a wrong conclusion."""
    found, rows = [], ROWS.get(config.loss.name)
    group, given = rows == "group", GIVEN.get(config.data.source.name, False)
    if group and config.loss.get("beta", 0) and config.train.kl_reference == "iteration":
        found.append(
            "train.kl_reference=iteration: the KL to pi_t and its gradient are 0 in the first"
            f" update of a rollout, so with one update per rollout loss.beta={config.loss.beta:g}"
            " does nothing"
        )
    moving = config.train.iterations > 1 and config.train.reference == "iteration"
    if given and rows == "pair" and moving:
        found.append(
            "train.reference=iteration: the reference is the policy at the start of each of"
            f" {config.train.iterations} iterations. Set train.reference=initial for the offline"
            " method as published, whose reference is the initial policy throughout"
        )
    if config.eval.oracles and given:
        found.append(
            f"eval.oracles={config.eval.oracles} is not asked: the responses of data.source.name="
            f"{config.data.source.name} are given, and none is sampled; `evaluate` compares the"
            " policies by an oracle"
        )
    if config.sampling.temperature == 0 and not given and rows in ("pair", "group"):
        found.append(
            f"sampling.temperature=0: the {config.sampling.num_samples} responses to a prompt are"
            " equal, so no pair has a winner and no group an advantage; set"
            " sampling.temperature=1"
        )
    if config.pairs.gate.name != "linear" and _without_gate(config.loss.name):
        found.append(
            f"pairs.gate={config.pairs.gate.name}: loss.name={config.loss.name} does not read the"
            " gated target, so the gate changes nothing; s_sppo reads it"
        )
    if group or rows == "opponent":
        found += _sampling_cautions(config, group)
    return found + _precision_cautions(config)


def _without_gate(loss: str) -> bool:
    """Return true for the pair losses of the package that learn from ungated win rates."""
    package = LOSSES[loss].__module__.startswith("ssppo_jax.") if loss in LOSSES else False
    return package and ROWS.get(loss) == "pair" and loss != "s_sppo"


def _sampling_cautions(config: ConfigDict, group: bool) -> list[str]:
    """Say where a policy gradient is not that of the distribution sampled from."""
    found, sampling, name = [], config.sampling, config.loss.name
    corrected = config.train.importance_sampling_correction
    remedy = "set train.importance_sampling_correction=true"
    raw = not group or config.group.logprob_temperature == "raw"
    if raw and sampling.temperature != 1 and not corrected:
        found.append(
            f"sampling.temperature={sampling.temperature:g}: {name} takes log-probs at temperature"
            " 1, so its gradient is not that of the distribution sampled from; "
            + ("set group.logprob_temperature=sampling" if group else remedy)
        )
    if sampling.param_dtype == "int8" and not corrected:
        found.append(
            f"sampling.param_dtype=int8: responses are drawn with rounded weights, and {name} takes"
            f" them for the policy's own; {remedy}"
        )
    cuts = {"top_k": sampling.top_k > 0, "top_p": sampling.top_p < 1, "min_p": sampling.min_p > 0}
    keys = ", ".join(f"sampling.{key}={sampling[key]:g}" for key, cut in cuts.items() if cut)
    if keys and corrected:
        found.append(
            f"{keys}: importance weights cannot bring back the tokens that are never drawn, so"
            f" {name}'s gradient lacks their share"
        )
    elif keys:
        found.append(
            f"{keys}: {name} takes log-probs over all tokens, so its gradient is not that of the"
            f" distribution sampled from; {remedy}, which corrects all but the tokens that are"
            " never drawn"
        )
    return found


def _precision_cautions(config: ConfigDict) -> list[str]:
    """Say what bfloat16 would lose in parameters, moments and an exported model."""
    found, optimizer, half = [], config.optimizer, config.model.param_dtype == "bfloat16"
    if half and optimizer.rounding == "nearest":
        found.append(
            "model.param_dtype=bfloat16 with optimizer.rounding=nearest: an update below 1/512 of"
            f" a parameter is lost, at optimizer.learning_rate={optimizer.learning_rate:g} of most"
            " of them; train/update_share logs the share that moved. Set"
            " optimizer.rounding=stochastic (no memory) or master (4 bytes a parameter)"
        )
    own = half and rounding_of(config) != "master"
    decay = max(optimizer.get("b2", 0), optimizer.get("decay", 0))
    if (optimizer.state_dtype == "bfloat16" or (optimizer.state_dtype == "param" and own)) and (
        decay > 0.99 and optimizer.name != "lion"
    ):
        found.append(
            f"{optimizer.name}'s mean square is kept in bfloat16, where a decay of {decay:g} stops"
            " far below the mean (0.999: at a quarter), so steps are too large; set"
            " optimizer.state_dtype=float32"
        )
    if half and config.lora.rank:
        found.append(
            "model.param_dtype=bfloat16 with lora.rank: policy/ rounds the merged weights to"
            " bfloat16 and is not exactly the policy that is evaluated; adapters/ is"
        )
    return found
