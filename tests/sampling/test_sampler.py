"""Sampling: recorded log-probs are the trainer's, a row is alone in the world, and rows stop where
they should."""

import jax
import numpy as np
import pytest
from tiny import ARCHES, EOS, PAD, PARAMS, V, generator, jit, make_prompts, mask_of, rows, scorer

from ssppo_jax.models.arch import tiny_arch
from ssppo_jax.models.decoder import Decoder, init_params, output_kernel
from ssppo_jax.sampling.choose import SamplingParams
from ssppo_jax.sampling.sampler import make_generate
from ssppo_jax.types import FINISH_EOS, FINISH_LENGTH

KEY = jax.random.key(0)
T = 8
RAW = SamplingParams(max_new_tokens=T)
SHAPED = SamplingParams(temperature=1.5, top_p=0.9, top_k=30, max_new_tokens=T)
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=T)
LENGTHS, P, WIDER = (5, 1, 9, 3), 9, 14
PROMPTS = make_prompts(LENGTHS, P)


def same_rows(a, b, *, atol=1e-5):
    """Two `Samples` of the same rows: tokens, lengths and finish exactly, log-probs within float32
    rounding."""
    for field in ("tokens", "length", "finish"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
    for field in ("logp", "sampling_logp"):
        np.testing.assert_allclose(getattr(a, field), getattr(b, field), atol=atol)


def some(samples, b=slice(None), k=slice(None)):
    return type(samples)(*(x[b, k] for x in samples))


# ---- the flagship: sampler and trainer agree -----------------------------------------------------


@pytest.mark.parametrize(
    "name, sampling",
    [("tied", RAW), ("tied", SHAPED), ("tied", GREEDY)]
    + [(name, SHAPED) for name in ("llama3", "mistral", "qwen3", "gemma2", "gemma3")],
    ids=["raw", "shaped", "greedy", "llama3", "mistral", "qwen3", "gemma2", "gemma3"],
)
def test_log_probs_recorded_while_sampling_equal_the_trainers(name, sampling):
    samples = generator(3, sampling, name)(PROMPTS, KEY)
    mask = mask_of(samples.length, T)
    policy = scorer(name)(PROMPTS, samples.tokens, mask)
    np.testing.assert_allclose(np.where(mask > 0, policy.logp, 0), samples.logp, atol=1e-5)


@pytest.mark.parametrize("b, width", [(0, WIDER), (1, WIDER), (2, WIDER)])
def test_the_trainer_scores_a_row_alone_in_a_wider_bucket_as_it_was_sampled(b, width):
    samples = some(generator(3, SHAPED)(PROMPTS, KEY), slice(b, b + 1), slice(1, 2))
    alone = rows(make_prompts(LENGTHS, width), [b])
    mask = mask_of(samples.length, T)
    policy = scorer()(alone, samples.tokens, mask)
    np.testing.assert_allclose(np.where(mask > 0, policy.logp, 0), samples.logp, atol=1e-5)


def test_the_sampled_rows_compared_are_of_many_lengths():
    """Otherwise the comparisons above say little about ends and padding."""
    lengths = generator(3, SHAPED)(PROMPTS, KEY).length
    assert len(np.unique(lengths)) >= 4 and lengths.min() < 4 and lengths.max() == T


def test_sampling_log_probs_are_those_of_the_restricted_distribution():
    samples = generator(3, SHAPED)(PROMPTS, KEY)
    apply = Decoder(ARCHES["tied"]).apply
    forward = jit(lambda *args: apply({"params": PARAMS["tied"]}, *args))(
        *PROMPTS[:2], samples.tokens
    )
    last = np.stack([forward.prompt[b, n - 1] for b, n in enumerate(LENGTHS)])
    before = np.concatenate(
        [np.broadcast_to(last[:, None, None], (4, 3, 1, 32)), forward.completion[:, :, :-1]], 2
    )
    logits = (
        before.astype(np.float64)
        @ np.asarray(output_kernel(PARAMS["tied"], ARCHES["tied"]), np.float64)
        / 1.5
    )
    for b, k in np.ndindex(4, 3):
        for t in range(samples.length[b, k]):
            row = np.sort(logits[b, k, t])[::-1][:30]  # temperature, then top-k
            p = np.exp(row - row[0]) / np.exp(row - row[0]).sum()
            size = (
                np.searchsorted(np.cumsum(p), 0.9) + 1
            )  # then top-p: the first that reaches it is in
            want = (
                logits[b, k, t, samples.tokens[b, k, t]]
                - row[0]
                - np.log(np.exp(row[:size] - row[0]).sum())
            )
            np.testing.assert_allclose(samples.sampling_logp[b, k, t], want, atol=1e-5)
    assert (samples.sampling_logp > samples.logp)[samples.logp < 0].mean() > 0.5


# ---- a row does not know its neighbours ----------------------------------------------------------


@pytest.mark.parametrize("sampling", [SHAPED, GREEDY], ids=["shaped", "greedy"])
def test_a_row_alone_in_another_bucket_equals_the_row_in_the_batch(sampling):
    batch = generator(3, sampling)(PROMPTS, KEY)
    for b in range(4):
        alone = generator(3, sampling)(rows(make_prompts(LENGTHS, WIDER, fill=V - 1), [b]), KEY)
        same_rows(alone, some(batch, slice(b, b + 1)))


def test_permuting_prompts_permutes_samples():
    order = [2, 0, 3, 1]
    permuted = generator(3, SHAPED)(rows(PROMPTS, order), KEY)
    same_rows(permuted, some(generator(3, SHAPED)(PROMPTS, KEY), order))


def test_other_neighbours_change_nothing():
    prompts = make_prompts(LENGTHS, P, seed=5, first_address=90)
    mixed = type(PROMPTS)(
        *(np.concatenate([a[:1], b[1:]]) for a, b in zip(PROMPTS, prompts, strict=True))
    )
    batch, other = generator(3, SHAPED)(PROMPTS, KEY), generator(3, SHAPED)(mixed, KEY)
    same_rows(some(batch, slice(1)), some(other, slice(1)))
    assert (batch.tokens[1:] != other.tokens[1:]).any((1, 2)).all()


def test_more_samples_keep_the_first_ones():
    more = generator(5, SHAPED)(PROMPTS, KEY)
    same_rows(some(more, k=slice(3)), generator(3, SHAPED)(PROMPTS, KEY))
    assert len({row.tobytes() for row in more.tokens[0]}) > 1


def test_another_address_or_key_gives_other_samples():
    batch = generator(3, SHAPED)(PROMPTS, KEY)
    moved = generator(3, SHAPED)(PROMPTS._replace(address=PROMPTS.address + 100), KEY)
    rekeyed = generator(3, SHAPED)(PROMPTS, jax.random.key(1))
    for other in (moved, rekeyed):
        assert (batch.tokens != other.tokens).any((1, 2)).all()


def test_the_same_prompt_at_two_addresses_is_sampled_independently():
    twice = rows(PROMPTS, [0, 0, 0, 0])._replace(address=np.array([7, 8, 9, 7], np.uint32))
    tokens = generator(3, SHAPED)(twice, KEY).tokens
    np.testing.assert_array_equal(tokens[0], tokens[3])
    assert (tokens[0] != tokens[1]).any() and (tokens[1] != tokens[2]).any()


def test_every_token_of_a_row_is_drawn_anew():
    """At a temperature that makes all tokens alike, a row that used one random number throughout
    would repeat it."""
    samples = generator(3, SamplingParams(temperature=1e4, max_new_tokens=T))(PROMPTS, KEY)
    first, second = samples.tokens[..., :-1], samples.tokens[..., 1:]
    both = mask_of(samples.length, T)[..., 1:] > 0
    assert both.sum() > 30 and (first == second)[both].mean() < 0.1


def test_greedy_samples_of_one_prompt_are_equal_and_ignore_the_key():
    a, b = generator(3, GREEDY)(PROMPTS, KEY), generator(3, GREEDY)(PROMPTS, jax.random.key(9))
    same_rows(a, b)
    np.testing.assert_array_equal(a.tokens, np.repeat(a.tokens[:, :1], 3, 1))


# ---- the end of a row ----------------------------------------------------------------------------


def test_what_lies_behind_a_rows_length_is_padding_and_only_that():
    samples = generator(3, SHAPED)(PROMPTS, KEY)
    mask = mask_of(samples.length, T) > 0
    assert (samples.tokens[~mask] == PAD).all()
    assert not samples.logp[~mask].any() and not samples.sampling_logp[~mask].any()
    assert (samples.logp[mask] < 0).all()
    stop = np.isin(samples.tokens, EOS) & mask
    last = np.arange(T) == samples.length[..., None] - 1
    assert not (stop & ~last).any()
    np.testing.assert_array_equal(
        samples.finish, np.where((stop & last).any(-1), FINISH_EOS, FINISH_LENGTH)
    )
    assert (samples.length[samples.finish == FINISH_LENGTH] == T).all()


COUNTING = tiny_arch(vocab_size=32, tie_embeddings=False)
STOPS, ODD_PAD = (20, 30), 31


def counting_params():
    """A model that says i+1 after token i: blocks add nothing, the head is the embedding moved by
    one."""
    shapes = jax.eval_shape(lambda: init_params(Decoder(COUNTING), KEY))
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    params["embed"]["embedding"] = np.eye(32, dtype=np.float32)
    params["norm"]["scale"] = np.ones(32, np.float32)
    params["head"]["kernel"] = np.roll(np.eye(32, dtype=np.float32), 1, axis=1)
    return params


class Counter:
    """Counts the steps a compiled loop really takes: it is called whenever logits are about to be
    sampled from."""

    def __init__(self):
        self.steps = 0

    def __call__(self, x, kind):
        if kind == "logits":
            jax.debug.callback(self.step)
        return x

    def step(self):
        self.steps += 1


@pytest.fixture(scope="module")
def count_on():
    """count_on(last tokens of the prompts) -> Samples of the counting model, and the steps that
    were computed."""
    counter, params = Counter(), counting_params()
    decoder = Decoder(COUNTING, constrain=counter)
    sampling = SamplingParams(temperature=0.0, max_new_tokens=6)
    generate = jit(
        make_generate(decoder, num_samples=2, eos_ids=STOPS, pad_id=ODD_PAD, sampling=sampling)
    )

    def run(prompt_tokens):
        counter.steps = 0
        width = np.asarray(prompt_tokens, np.int32)
        prompts = make_prompts([width.shape[1]] * len(width), width.shape[1])._replace(tokens=width)
        samples = jax.device_get(generate(params, prompts, KEY))
        jax.effects_barrier()
        return samples, counter.steps

    return run


def test_rows_stop_at_any_eos_and_the_loop_stops_when_all_rows_have(count_on):
    samples, steps = count_on([[5, 17], [5, 19], [5, 28]])
    want = [[18, 19, 20, 31, 31, 31], [20, 31, 31, 31, 31, 31], [29, 30, 31, 31, 31, 31]]
    np.testing.assert_array_equal(samples.tokens, np.repeat(np.array(want)[:, None], 2, 1))
    np.testing.assert_array_equal(samples.length, [[3, 3], [1, 1], [2, 2]])
    assert (samples.finish == FINISH_EOS).all() and samples.finish.dtype == np.int8
    assert steps == 3  # of 6


def test_the_loop_stops_at_once_when_every_first_token_is_an_eos(count_on):
    samples, steps = count_on([[5, 19], [5, 29], [5, 19]])
    assert steps == 1 and (samples.length == 1).all()


def test_an_eos_in_the_last_slot_is_an_eos_and_a_full_row_without_one_is_not(count_on):
    samples, steps = count_on([[5, 14], [5, 13], [5, 19]])
    np.testing.assert_array_equal(samples.length[:, 0], [6, 6, 1])
    np.testing.assert_array_equal(samples.finish[:, 0], [FINISH_EOS, FINISH_LENGTH, FINISH_EOS])
    assert steps == 6


def test_an_eos_in_the_prompt_stops_nothing(count_on):
    samples, _ = count_on([[20, 3], [5, 20], [30, 30]])
    np.testing.assert_array_equal(samples.tokens[0, 0], [4, 5, 6, 7, 8, 9])
    np.testing.assert_array_equal(samples.tokens[1, 0], [21, 22, 23, 24, 25, 26])
    np.testing.assert_array_equal(
        samples.tokens[2, 0], [31, 0, 1, 2, 3, 4]
    )  # 31 is the pad id, and was sampled
    np.testing.assert_array_equal(samples.length, np.full((3, 2), 6))


def test_one_token_is_the_shortest_completion():
    samples = generator(2, SamplingParams(max_new_tokens=1))(PROMPTS, KEY)
    assert samples.tokens.shape == (4, 2, 1) and (samples.length == 1).all()
    np.testing.assert_array_equal(
        samples.finish == FINISH_EOS, np.isin(samples.tokens[..., 0], EOS)
    )
