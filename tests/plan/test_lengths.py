"""What a plan says of responses of unequal length."""

import jax
import numpy as np
import pytest

from ssppo_jax import schema
from ssppo_jax.data.lengths import long_tailed
from ssppo_jax.models.arch import tiny_arch
from ssppo_jax.plan import compile as plan
from ssppo_jax.plan.lengths import SEED, STEPS, uneven_of
from ssppo_jax.plan.steps import micro_batches

T, BATCH = 1024, 64
WHOLE = {
    "data.prompt_buckets": "(128,)",
    "data.max_prompt_length": "128",
    "sampling.max_new_tokens": str(T),
    "train.batch_size": str(BATCH),
    "train.prompts_per_iteration": "0",
    "train.micro_batches": "4",
}
PACKED = WHOLE | {
    "data.completion_buckets": "(256,512)",
    "train.micro_batches": "1",
    "train.max_token_len": "4608",
    "train.padding_free": "true",
}


def runtime_of(settings):
    config = schema.load("configs/smoke.py", settings, 1)
    arch = tiny_arch(vocab_size=512, max_positions=2048)
    return plan.described(config, arch, jax.devices()[:1])


def test_padding_is_that_of_the_configs_own_cut():
    whole, packed = (uneven_of(runtime_of(settings), ()) for settings in (WHOLE, PACKED))
    own = long_tailed((STEPS * BATCH, 2), longest=T, seed=SEED)
    prompts = np.random.default_rng(SEED).integers(64, 129, STEPS * BATCH)
    tokens = (prompts.sum() + own.sum()) / STEPS
    for found in (whole, packed):
        assert found.tokens == pytest.approx(tokens) and found.seconds is None
    assert whole.slots == BATCH * (128 + 2 * T)
    assert whole.scored == whole.trained == pytest.approx(1 - tokens / whole.slots)
    assert whole.trained > 0.7
    assert 0 < packed.scored < 0.06 and 0 < packed.trained < 0.06
    assert "padding 73% of the tokens scored, 73% of those trained on" in str(whole)


def test_a_micro_batch_of_tokens_has_the_rows_of_full_length_that_fit():
    assert micro_batches(runtime_of(WHOLE)) == (4, 16)
    assert micro_batches(runtime_of(PACKED)) == (32, 2)  # 2 x (128 + 2 x 1024) = 4352
