"""What a loss sees of the model: raw token log-probs and one pooled hidden state per completion."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from ssppo_jax.errors import ConfigError
from ssppo_jax.models.decoder import Decoder, Forward, output_kernel
from ssppo_jax.models.logprobs import TokenLogprobs, token_logprobs
from ssppo_jax.types import Array, Policy, PyTree

POOLINGS = ("last_token", "mean_response")
LAYERS = ("final_post_norm", "final_pre_norm")

Apply = Callable[..., tuple[Policy, Array | None]]


def predictors(forward: Forward, prompt_length: Array) -> Array:  # [B,K,T,D]
    """The states that predict each completion token: the prompt's last, then the completion's own,
    shifted by one."""
    last = jnp.take_along_axis(
        forward.prompt, (prompt_length - 1)[:, None, None], axis=1
    )  # [B,1,D]
    b, k, _, d = forward.completion.shape
    first = jnp.broadcast_to(last[:, None], (b, k, 1, d))
    return jnp.concatenate([first, forward.completion[:, :, :-1]], axis=2)


def pool(
    states: Array,
    mask: Array,
    pooling: str,  # [B,K,T,D]  # [B,K,T] float32
) -> Array:  # [B,K,D] float32
    """One vector per completion: the state of its last token (EOS when it was sampled), or the mean
    over its tokens.

    Reconstruction: the S-SPPO paper says "final hidden state" and names no pooling.
    """
    if pooling == "mean_response":
        kept = jnp.where(mask[..., None] > 0, states.astype(jnp.float32), 0.0)
        return kept.sum(2) / jnp.maximum(mask.sum(2), 1.0)[..., None]
    last = jnp.maximum(mask.sum(2).astype(jnp.int32) - 1, 0)
    return jnp.take_along_axis(states, last[:, :, None, None], axis=2)[:, :, 0].astype(jnp.float32)


def make_apply(
    decoder: Decoder,
    *,
    logprob_chunk: int = 4096,
    repulsion_pooling: str = "last_token",
    repulsion_layer: str = "final_post_norm",
) -> Apply:
    """apply(params, prompt, prompt_length, completion, mask, entropy=False, dropout_key=None) ->
    (Policy, entropy).

    The entropy is [B,K,T], or None when it is not asked for; a `dropout_key` turns the adapters'
    dropout on.

    Args:
      decoder: the model.
      logprob_chunk: vocabulary entries whose logits exist at one time.
      repulsion_pooling: "last_token" or "mean_response" (reconstruction).
      repulsion_layer: "final_post_norm" (Hugging Face's last hidden state), "final_pre_norm", or a
        block's number.

    Raises:
      ConfigError: a block that the model does not have.
    """
    tap = _tap_layer(repulsion_layer, decoder.arch.num_layers)

    def apply(
        params: PyTree,
        prompt: Array,  # [B,P]
        prompt_length: Array,  # [B]
        completion: Array,  # [B,K,T]
        mask: Array,  # [B,K,T]
        *,
        entropy: bool = False,
        dropout_key: Array | None = None,
    ) -> tuple[Policy, Array | None]:
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        forward = decoder.apply(
            {"params": params}, prompt, prompt_length, completion, tap_layer=tap, rngs=rngs
        )
        out: TokenLogprobs = token_logprobs(
            predictors(forward, prompt_length),
            output_kernel(params, decoder.arch),
            completion,
            chunk=logprob_chunk,
            softcap=decoder.arch.final_softcap,
            entropy=entropy,
            parts=decoder.constrain.vocab_parts,
            constrain=decoder.constrain,
        )
        states = forward.completion if tap is None else forward.tap
        return Policy(out.logp, pool(states, mask, repulsion_pooling)), out.entropy

    return apply


def _tap_layer(repulsion_layer: str, layers: int) -> int | None:
    """The block whose output is tapped; None for the state after the final norm."""
    if repulsion_layer in LAYERS:
        return None if repulsion_layer == "final_post_norm" else layers - 1
    if not repulsion_layer.isdigit() or int(repulsion_layer) >= layers:
        raise ConfigError(
            f"loss.repulsion_layer={repulsion_layer!r}: one of {', '.join(LAYERS)}, or a block's"
            f" number from 0 to {layers - 1}"
        )
    return int(repulsion_layer)
