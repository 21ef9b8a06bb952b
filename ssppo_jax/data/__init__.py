"""Load prompts, order them and batch them."""

from ssppo_jax.config import constants, discover
from ssppo_jax.data.batches import (
    EncodedPrompt,
    LengthGroup,
    address,
    addresses,
    bucket_of,
    encode_prompts,
    length_groups,
    pad_batch,
)
from ssppo_jax.data.micro_batches import Cut, MicroBatch, cut_of
from ssppo_jax.data.order import (
    History,
    epoch_batches,
    fingerprint,
    portion,
    portion_sizes,
    question,
    split_prompts,
)

SOURCES = discover(__path__, __name__, "SOURCES")  # of every module here
# whether a source's prompts come with the responses that are trained on
GIVEN = constants(__path__, __name__, "SOURCES", "GIVEN", False)

__all__ = [
    "GIVEN",
    "SOURCES",
    "Cut",
    "EncodedPrompt",
    "History",
    "LengthGroup",
    "MicroBatch",
    "address",
    "addresses",
    "bucket_of",
    "cut_of",
    "encode_prompts",
    "epoch_batches",
    "fingerprint",
    "length_groups",
    "pad_batch",
    "portion",
    "portion_sizes",
    "question",
    "split_prompts",
]
