"""The model as a loss sees it: token log-probs and one pooled state per completion."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from ssppo_jax.errors import ConfigError
from ssppo_jax.models.decoder import Decoder, Forward, output_kernel
from ssppo_jax.models.logprobs import token_logprobs
from ssppo_jax.types import Array, Policy, PyTree

POOLINGS = ("last_token", "mean_response")
LAYERS = ("final_post_norm", "final_pre_norm")

Entropy = Float[Array, "B K T"]
Apply = Callable[..., tuple[Policy, Entropy | None]]


def predictors(forward: Forward, prompt_length: Int[Array, "B"]) -> Float[Array, "B K T D"]:
    """Return the states that predict each completion token.

    These are the prompt's last state and then the completion's own, shifted by one."""
    if forward.prompt is None or forward.completion is None:
        raise ValueError("predictors need a prompt and its completions")
    last = jnp.take_along_axis(forward.prompt, (prompt_length - 1)[:, None, None], axis=1)
    b, k, _, d = forward.completion.shape
    first = jnp.broadcast_to(last[:, None], (b, k, 1, d))
    return jnp.concatenate([first, forward.completion[:, :, :-1]], axis=2)


def pool(
    states: Float[Array, "B K T D"], mask: Float[Array, "B K T"], pooling: str
) -> Float[Array, "B K D"]:
    """Pool a completion's states into one: its last token's (EOS if sampled), or their mean.

    Reconstruction: the S-SPPO paper says "final hidden state" and names no pooling."""
    if pooling == "mean_response":
        kept = jnp.where(mask[..., None] > 0, states.astype(jnp.float32), 0.0)
        return kept.sum(2) / jnp.maximum(mask.sum(2), 1.0)[..., None]
    last = jnp.maximum(mask.sum(2).astype(jnp.int32) - 1, 0)
    return jnp.take_along_axis(states, last[:, :, None, None], axis=2)[:, :, 0].astype(jnp.float32)


def make_apply(
    decoder: Decoder,
    *,
    logprob_chunk: int = 4096,
    temperature: float = 1.0,
    repulsion_pooling: str = "last_token",
    repulsion_layer: str = "final_post_norm",
) -> Apply:
    """Return apply(params, prompt, prompt_length, completion, mask) -> (Policy, entropy).

    The entropy is None unless `entropy=True` asks for it. A `dropout_key` turns the adapters'
    dropout on.

    Args:
      decoder: the model.
      logprob_chunk: vocabulary entries whose logits exist at one time.
      temperature: divides the logits of log-probs and entropy.
      repulsion_pooling: "last_token" or "mean_response" (reconstruction).
      repulsion_layer: "final_post_norm" (Hugging Face's last hidden state), "final_pre_norm", or a
        block's number.

    Raises:
      ConfigError: a block that the model does not have.
    """
    tap = _tap_layer(repulsion_layer, decoder.arch.num_layers)

    def apply(
        params: PyTree[Array],
        prompt: Int[Array, "B P"],
        prompt_length: Int[Array, "B"],
        completion: Int[Array, "B K T"],
        mask: Float[Array, "B K T"],
        *,
        entropy: bool = False,
        dropout_key: Key[jax.Array, ""] | None = None,
    ) -> tuple[Policy, Entropy | None]:
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        out = decoder.apply(
            {"params": params}, prompt, prompt_length, completion, tap_layer=tap, rngs=rngs
        )
        forward = cast(Forward, out)
        scored = token_logprobs(
            predictors(forward, prompt_length),
            output_kernel(params, decoder.arch),
            completion,
            chunk=logprob_chunk,
            softcap=decoder.arch.final_softcap,
            temperature=temperature,
            entropy=entropy,
            parts=decoder.constrain.vocab_parts,
            constrain=decoder.constrain,
        )
        states = cast(Array, forward.completion if tap is None else forward.tap)
        return Policy(scored.logp, pool(states, mask, repulsion_pooling)), scored.entropy

    return apply


def _tap_layer(repulsion_layer: str, layers: int) -> int | None:
    """Return the block whose output is tapped; None for the state after the final norm."""
    if repulsion_layer in LAYERS:
        return None if repulsion_layer == "final_post_norm" else layers - 1
    if not repulsion_layer.isdigit() or int(repulsion_layer) >= layers:
        raise ConfigError(
            f"loss.repulsion_layer={repulsion_layer!r}: one of {', '.join(LAYERS)}, or a block's"
            f" number from 0 to {layers - 1}"
        )
    return int(repulsion_layer)
