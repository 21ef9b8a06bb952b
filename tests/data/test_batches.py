"""Prompts of similar lengths wait in one line, and batches of a line hold every prompt once."""

import numpy as np
import pytest

from ssppo_jax.data import EncodedPrompt, address, length_groups, pad_batch
from ssppo_jax.errors import ConfigError
from ssppo_jax.types import Prompt


def batches(encoded, *, batch_size, buckets):
    """Every line cut into batches."""
    return [
        pad_batch(encoded, line.rows[i : i + batch_size], batch_size, line.width)
        for line in length_groups(encoded, batch_size=batch_size, buckets=buckets)
        for i in range(0, len(line.rows), batch_size)
    ]


def encoded_of(lengths):
    rng = np.random.default_rng(1)
    rows = [
        (Prompt(f"p{i}", ()), rng.integers(1, 99, n).astype(np.int32))
        for i, n in enumerate(lengths)
    ]
    return [EncodedPrompt(p, tokens, address(p.id)) for p, tokens in rows]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
def test_batches_hold_every_prompt_once_padded_by_length(batch_size):
    encoded = encoded_of([5, 1, 8, 3, 16, 9, 8, 2, 4, 13])
    found = batches(encoded, batch_size=batch_size, buckets=(4, 8, 16))
    assert sorted(np.concatenate([b.source[b.real] for b in found])) == list(range(10))
    assert len(found) == -(-10 // batch_size)
    for prompts, real, index in found:
        assert (
            prompts.tokens.dtype == prompts.length.dtype == np.int32
            and prompts.address.dtype == np.uint32
        )
        assert prompts.tokens.shape[0] == len(real) == len(index) == batch_size
        for row, length, spot, i in zip(*prompts, index, strict=True):
            np.testing.assert_array_equal(row[:length], encoded[i].tokens)
            assert spot == encoded[i].address and not row[length:].any()
        smallest = min(b for b in (4, 8, 16) if b >= prompts.length.max())
        assert prompts.tokens.shape[1] == smallest


def test_only_the_last_batch_has_filler_rows_and_they_repeat_real_ones():
    *full, last = batches(encoded_of([3] * 10), batch_size=4, buckets=(4,))
    assert all(b.real.all() for b in full) and last.real.tolist() == [True, True, False, False]
    assert last.source.tolist() == [8, 9, 8, 9]
    (only,) = batches(encoded_of([3]), batch_size=5, buckets=(4,))
    assert only.real.tolist() == [True] + [False] * 4 and only.source.tolist() == [0] * 5


def test_batches_go_by_length_and_keep_the_given_order_among_equals():
    found = batches(encoded_of([9, 2, 9, 2]), batch_size=2, buckets=(4, 16))
    assert [b.source.tolist() for b in found] == [[1, 3], [0, 2]]
    assert [b.prompts.tokens.shape[1] for b in found] == [4, 16]


def test_cuts_of_one_width_stand_in_one_line():
    found = length_groups(encoded_of([9, 2, 3, 9, 4, 2, 16, 1]), batch_size=2, buckets=(4, 16))
    assert [(line.width, line.rows.tolist()) for line in found] == [
        (4, [7, 1, 5, 2]),
        (16, [4, 0, 3, 6]),
    ]


def test_no_prompts_make_no_batches():
    assert batches([], batch_size=2, buckets=(4,)) == []


@pytest.mark.parametrize(
    ("batch_size", "buckets", "message"),
    [
        (2, (4, 8), "prompt 'p1' has 9 tokens but the largest bucket is 8; add a larger bucket"),
        (0, (16,), "batch_size=0"),
        (2, (), "positive and increasing"),
        (2, (0, 16), "positive and increasing"),
        (2, (16, 16), "positive and increasing"),
        (2, (16, 8), "positive and increasing"),
    ],
)
def test_impossible_batches_are_errors(batch_size, buckets, message):
    with pytest.raises(ConfigError, match=message):
        batches(encoded_of([3, 9]), batch_size=batch_size, buckets=buckets)
