"""The model as a loss sees it: token log-probs and one pooled state per completion."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from ssppo_jax.errors import ConfigError
from ssppo_jax.models.decoder import Decoder, Forward, Layout, output_kernel
from ssppo_jax.models.logprobs import token_logprobs
from ssppo_jax.models.packing import Packing
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


def unpacked(packing: Packing, layout: Layout, stream: Array, rows: int) -> Array:
    """Return what a stream [W,S,...] holds of completions as [B,K,T,...], 0 in padding."""
    return cast(Array, layout.split(packing.unpack(stream, rows))[1])


def pool_stream(
    packing: Packing,
    layout: Layout,
    states: Float[Array, "W S D"],
    mask: Float[Array, "B K T"],
    pooling: str,
) -> Float[Array, "B K D"]:
    """Do what `pool` does for states in streams; the last token's are read where they lie."""
    if pooling == "mean_response":
        return pool(unpacked(packing, layout, states, mask.shape[0]), mask, pooling)
    slots = packing.slot.reshape(mask.shape[0], -1)
    own = cast(Array, layout.split(slots)[1])
    last = jnp.maximum(mask.sum(2).astype(jnp.int32) - 1, 0)
    at = jnp.take_along_axis(own, last[:, :, None], axis=2).reshape(states.shape[0], -1)
    return packing.at(states, at).reshape(*mask.shape[:2], -1).astype(jnp.float32)


def _with_slots(x: Float[Array, "B K t"], slots: int) -> Float[Array, "B K T"]:
    """Append zeros up to T slots."""
    lacking = slots - x.shape[2]
    return jnp.pad(x, ((0, 0), (0, 0), (0, lacking))) if lacking else x


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
    dropout on. No more than `slots` of the T completion slots are computed; the others must be
    padding and give 0. With a `packing` of the rows so cut, dense layers see no padding.

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
        slots: int | None = None,
        packing: Packing | None = None,
    ) -> tuple[Policy, Entropy | None]:
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        whole, own = completion.shape[2], completion[:, :, :slots]
        out = decoder.apply(
            {"params": params},
            prompt,
            prompt_length,
            own,
            tap_layer=tap,
            rngs=rngs,
            packing=packing,
        )
        forward = cast(Forward, out)
        score = functools.partial(
            token_logprobs,
            kernel=output_kernel(params, decoder.arch),
            chunk=logprob_chunk,
            softcap=decoder.arch.final_softcap,
            temperature=temperature,
            entropy=entropy,
            parts=decoder.constrain.vocab_parts,
            constrain=decoder.constrain,
        )
        kept = mask[:, :, :slots]
        if packing is None:
            scored = score(predictors(forward, prompt_length), targets=own)
            states = cast(Array, forward.completion if tap is None else forward.tap)
            pooled = pool(states, kept, repulsion_pooling)
        else:
            layout = Layout(prompt.shape[1], *own.shape[1:])
            stream = cast(Array, forward.stream)
            targets = packing.pack(layout.join(prompt, own))
            found = score(packing.predictors(stream)[:, None], targets=targets[:, None])
            scored = jax.tree.map(lambda x: unpacked(packing, layout, x[:, 0], len(prompt)), found)
            states = cast(Array, stream if tap is None else forward.tap)
            pooled = pool_stream(packing, layout, states, kept, repulsion_pooling)
        logp, seen = jax.tree.map(lambda x: _with_slots(x, whole), scored)
        return Policy(logp, pooled), seen

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
