"""Count what a slot of the sampler holds in memory, and how many slots fit."""

from __future__ import annotations

from typing import NamedTuple

from ssppo_jax.errors import ConfigError
from ssppo_jax.models.arch import Arch

# Of a device's memory: the rest is left to the compiler's own arrays.
SHARE = 0.9
# Arrays of one step's logits that exist at one time: the model's, scaled, as weights, and padded.
LOGITS = 4
# Arrays of a prompt's attention scores and of its hidden states that exist at one time.
SCORES = 4
STATES = 2


class Slot(NamedTuple):
    """Hold the bytes of one slot on one device."""

    token: float  # keys and values of one token
    cache: float  # keys and values of the prompt and of its completions
    logits: float  # one step's, float32
    work: float  # attention scores and hidden states while a prompt is read


def slot_of(
    arch: Arch,
    *,
    prompt: int,
    new: int,
    samples: int,
    tensor: int,
    itemsize: int,
    chunk: int = 0,
) -> Slot:
    """Count a slot's bytes on one device.

    Args:
      prompt: token slots of the prompt, P.
      new: completion slots, T.
      samples: completions of the prompt, K.
      tensor: devices that split heads and vocabulary.
      itemsize: bytes of one number of the keys and values.
      chunk: queries whose attention scores exist at one time; 0: all.
    """
    token = 2.0 * arch.num_kv_heads / tensor * arch.head_dim * itemsize * arch.num_layers
    scores = arch.num_heads / tensor * min(chunk or prompt, prompt) * prompt * 4.0
    return Slot(
        token=token,
        cache=token * (prompt + samples * new),
        logits=samples * arch.vocab_size / tensor * 4.0,
        work=SCORES * scores + STATES * prompt * arch.hidden_size * 4.0,
    )


def slots_that_fit(slot: Slot, *, room: float, held: float, ways: int, policies: int = 1) -> int:
    """Return the slots of a batch: as many as fit a device, times the ways.

    Args:
      slot: of one policy.
      room: bytes of one device.
      held: bytes that it holds already.
      ways: devices that split the prompts.
      policies: whose mixture is sampled; each keeps keys and values of its own.

    Raises:
      ConfigError: not even one slot fits.
    """
    each = policies * slot.cache + (policies + LOGITS) * slot.logits + slot.work
    free = SHARE * room - held
    rows = int(free / each)
    if rows < 1:
        raise ConfigError(
            f"sampling.batch_size=0: a prompt and its completions need {each / 2**30:.2f} GiB of a"
            f" device, and {max(free, 0.0) / 2**30:.2f} GiB are free; set"
            " sampling.mesh.tensor higher, sampling.param_dtype=bfloat16 or int8, or"
            " sampling.cache_dtype=bfloat16"
        )
    return rows * ways
