"""Prompts wait in line for slots: the tokens are those of whole batches, and slots idle less."""

import dataclasses
import functools
from collections import Counter

import jax
import numpy as np
import pytest
from small_runs import configure

from ssppo_jax.data import EncodedPrompt, pad_batch
from ssppo_jax.distributed.mesh import put_rows
from ssppo_jax.errors import Interrupted
from ssppo_jax.rollout.sample import refill_rows, sample_prompts
from ssppo_jax.runtime import build_runtime, sampling_params
from ssppo_jax.types import Prompt

pytestmark = pytest.mark.usefixtures("own_cache")
DATA = (("mesh__data", 8), ("mesh__fsdp", 1), ("mesh__tensor", 1))  # rows cut in eight, not in four
SETTINGS = {
    "sampling__max_new_tokens": 24,
    "sampling__num_samples": 2,
    "sampling__batch_size": 16,
    "sampling__top_k": 40,
}


@functools.cache
def made(refill, mesh=(), stops=tuple(range(0, 256, 12)), **settings):
    runtime = build_runtime(configure(**SETTINGS | dict(mesh) | settings, sampling__refill=refill))
    runtime = dataclasses.replace(
        runtime, eos=stops
    )  # one token in twelve ends a response: long tails
    return (
        runtime,
        runtime.make_sampler(num_samples=2, sampling=sampling_params(runtime.config)),
        runtime.load_params(),
    )


def prompts(count):
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 60, count)
    return [
        EncodedPrompt(Prompt(str(i), ()), rng.integers(3, 250, n).astype(np.int32), i)
        for i, n in enumerate(lengths)
    ]


def sample(refill, count=45, mesh=(), **settings):
    runtime, sampler, params = made(refill, mesh, **settings)
    return sample_prompts(runtime, sampler, params, prompts(count), jax.random.key(1))


@pytest.mark.parametrize("refill", [0.01, 0.5])
def test_refilled_slots_give_the_tokens_of_whole_batches(refill):
    whole, line = sample(1.0), sample(refill)
    for name, a, b in zip(whole.samples._fields, whole.samples, line.samples, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)
    assert whole.texts == line.texts
    lengths = whole.samples.length
    assert lengths.min() < 4 and lengths.max() == 24 and len(np.unique(lengths)) > 6


def test_slots_idle_less_the_sooner_they_are_refilled():
    shares = [sample(refill).metrics["slot_occupancy"] for refill in (1.0, 0.5, 0.01)]
    assert shares[0] < shares[1] < shares[2] <= 1.0 and shares[2] > shares[0] + 0.05


def test_nobody_waits_for_the_filler_rows_of_a_batch():
    one = sample(0.01, count=1)
    assert one.metrics["slot_occupancy"] == 1 / 16  # at every step, one of sixteen


def test_rows_are_refilled_in_parts_that_the_mesh_divides():
    np.testing.assert_array_equal(
        sample(0.01).samples.tokens, sample(0.01, mesh=DATA).samples.tokens
    )
    assert [refill_rows(made(refill)[0], 16) for refill in (0.01, 0.25, 0.5, 1.0)] == [4, 4, 8, 16]
    assert [refill_rows(made(refill, DATA)[0], 16) for refill in (0.01, 0.5, 1.0)] == [8, 8, 16]


@pytest.mark.parametrize("stops", [tuple(range(0, 256, 12)), (300,)], ids=["tails", "all at once"])
def test_every_prompt_is_handed_on_once_while_others_are_decoded(stops):
    runtime, sampler, params = made(0.01, stops=stops)
    seen, busy = Counter(), []

    def done(encoded, samples, texts):
        assert len(encoded) == len(samples.length) == len(texts)
        seen.update(e.prompt.id for e in encoded)
        busy.append(len(seen))

    sample_prompts(runtime, sampler, params, prompts(45), jax.random.key(1), done=done)
    assert seen == Counter(str(i) for i in range(45)) and busy == sorted(busy)
    assert (busy[0] < 16 and len(busy) > 5) if len(stops) > 1 else busy == [16, 32, 45]


def test_a_stop_between_rounds_ends_the_phase():
    runtime, sampler, params = made(0.01)
    asked = []

    def stopped():
        asked.append(None)
        return len(asked) > 2

    with pytest.raises(Interrupted):
        sample_prompts(runtime, sampler, params, prompts(45), jax.random.key(1), stopped=stopped)


def test_a_line_of_any_length_compiles_nothing_new():
    runtime, sampler, params = made(0.01)
    for count in (45, 5, 3, 33):
        sample_prompts(runtime, sampler, params, prompts(count), jax.random.key(2))
    assert [step._cache_size() for step in (sampler.start, sampler.run, sampler.refill)] == [
        1,
        1,
        1,
    ]


def test_filler_rows_of_a_refill_touch_no_slot():
    runtime, sampler, params = made(0.01)
    encoded, key = prompts(20), jax.random.key(1)
    first, more = (
        pad_batch(encoded, np.arange(*rows), len(range(*rows)), 256) for rows in ((16,), (16, 20))
    )
    real = put_rows(runtime.mesh, first.real)
    start = functools.partial(
        sampler.start, params, put_rows(runtime.mesh, first.prompts), key, real
    )
    before = jax.device_get(start())
    after = sampler.refill(
        params, start(), put_rows(runtime.mesh, more.prompts), key, np.full(4, 16, np.int32)
    )
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after), before)
