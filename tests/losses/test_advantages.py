"""Advantages: by pencil, their sums, and groups that teach nothing."""

import inspect
from statistics import mean, stdev, variance

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssppo_jax.errors import ConfigError
from ssppo_jax.losses.advantages import ADVANTAGES, dr_grpo, grpo, rloo, soft_overlong, zero_std

NAMES = sorted(ADVANTAGES)
CENTRED = ["grpo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline"]  # those with a group baseline
REWARD = np.array([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])  # means 3 and 1; unbiased variances 7 and 3
ROOT = np.sqrt


def by_pencil():
    centred = np.array([[-2.0, -1.0, 3.0], [-1.0, -1.0, 2.0]])
    whole = 5.2  # unbiased variance of all six (mean 2: 1 + 0 + 16 + 4 + 4 + 1 = 26, over 5)
    return {
        ("grpo", "group"): centred / (ROOT([[7.0], [3.0]]) + 1e-4),
        ("grpo", "batch"): centred / (ROOT(whole) + 1e-4),
        ("grpo", "none"): centred,
        ("dr_grpo", None): centred,
        ("rloo", None): np.array([[-3.0, -1.5, 4.5], [-1.5, -1.5, 3.0]]),
        ("reinforce_plus_plus", None): (REWARD - 2) / ROOT(whole),
        ("reinforce_plus_plus_baseline", None): centred / ROOT(4.0),  # (4 + 1 + 9 + 1 + 1 + 4) / 5
    }


@pytest.mark.parametrize(("name", "scale"), by_pencil())
def test_advantage_equals_its_pencil_value(name, scale):
    keywords = {"scale_rewards": scale} if scale else {}
    np.testing.assert_allclose(
        ADVANTAGES[name](REWARD, **keywords), by_pencil()[name, scale], rtol=1e-6
    )


def test_every_advantage_has_a_pencil_value():
    assert {name for name, _ in by_pencil()} == set(ADVANTAGES)


def flat(groups):
    return [r for group in groups for r in group]


LOOP = {  # of one reward, from its group and all groups
    "grpo": lambda r, group, _: (r - mean(group)) / (stdev(group) + 1e-4),
    "dr_grpo": lambda r, group, _: r - mean(group),
    "rloo": lambda r, group, _: r - (sum(group) - r) / (len(group) - 1),
    "reinforce_plus_plus": lambda r, _, groups: (
        (r - mean(flat(groups))) / (variance(flat(groups)) + 1e-8) ** 0.5
    ),
    "reinforce_plus_plus_baseline": lambda r, group, groups: (
        (r - mean(group)) / (variance([x - mean(g) for g in groups for x in g]) + 1e-8) ** 0.5
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_advantage_equals_a_float64_loop_of_its_definition(name):
    reward = np.random.default_rng(5).normal(1, 2, (4, 5))
    groups = reward.tolist()
    expected = [[LOOP[name](r, group, groups) for r in group] for group in groups]
    np.testing.assert_allclose(
        ADVANTAGES[name](reward.astype(np.float32)), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", CENTRED)
def test_advantages_of_a_group_sum_to_zero(name):
    """Identity 24: for GRPO and RLOO, and all that have a group baseline."""
    reward = np.random.default_rng(0).normal(3, 2, (5, 8)).astype(np.float32)
    np.testing.assert_allclose(ADVANTAGES[name](reward).sum(axis=1), 0, atol=2e-5)


def test_rloo_is_dr_grpo_times_k_over_k_minus_one():
    """Identity 24."""
    reward = np.random.default_rng(1).normal(size=(4, 6))
    np.testing.assert_allclose(rloo(reward), dr_grpo(reward) * 6 / 5, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7.7, 1e4])
def test_equal_rewards_give_exactly_zero(name, value):
    """Identity 24: K times 0.1 in float32 has a mean that is not 0.1; the difference must not be
    divided by 1e-4."""
    for k in (3, 6, 7):
        for array in (np, jnp):
            reward = array.full((2, k), value, dtype=np.float32)
            assert not np.any(np.asarray(ADVANTAGES[name](reward)))


@pytest.mark.parametrize("name", CENTRED)
def test_a_silent_group_stays_silent_beside_a_loud_one(name):
    reward = np.full((2, 7), 0.1, np.float32)
    reward[1] = np.arange(7)
    for scale in ["group", "batch", "none"] if name == "grpo" else [None]:
        found = ADVANTAGES[name](reward, **({"scale_rewards": scale} if scale else {}))
        assert not np.any(found[0]) and np.all(found[1][:3] < 0)


def test_without_a_group_baseline_a_group_of_equal_rewards_still_speaks():
    """REINFORCE++ compares with the whole batch."""
    found = ADVANTAGES["reinforce_plus_plus"](np.array([[1.0, 1.0], [0.0, 2.0], [4.0, 4.0]]))
    assert np.all(found[0] < 0) and np.all(found[2] > 0)


def test_groups_of_equal_rewards_are_found():
    np.testing.assert_array_equal(
        zero_std(np.array([[0.1, 0.1, 0.1], [0.0, 0.0, 1.0]])), [True, False]
    )


@pytest.mark.parametrize("name", NAMES)
def test_numpy_and_jax_agree_and_keep_float32(name):
    reward = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
    on_host, on_device = ADVANTAGES[name](reward), ADVANTAGES[name](jnp.asarray(reward))
    assert isinstance(on_host, np.ndarray) and on_host.dtype == np.float32
    assert isinstance(on_device, jnp.ndarray) and on_device.dtype == jnp.float32
    np.testing.assert_allclose(on_host, on_device, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_jit_and_sharding_over_prompts_change_nothing(name):
    reward = np.random.default_rng(6).normal(size=(4, 3)).astype(np.float32)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(
        reward, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    )
    for given in (reward, split):
        np.testing.assert_allclose(
            jax.jit(ADVANTAGES[name])(given), ADVANTAGES[name](reward), rtol=2e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_an_advantage_of_the_group_alone_does_not_see_other_groups(name):
    """So rollouts may be cut anywhere between prompts; those that divide by the batch's spread may
    not."""
    reward = np.random.default_rng(7).normal(size=(4, 3)).astype(np.float32)
    cut = np.concatenate([ADVANTAGES[name](reward[:1]), ADVANTAGES[name](reward[1:])])
    np.testing.assert_allclose(ADVANTAGES[name](reward), cut, rtol=1e-6)
    whole, alone = (ADVANTAGES["reinforce_plus_plus_baseline"](x)[0] for x in (reward, reward[:1]))
    assert not np.allclose(whole, alone, rtol=1e-2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "rewards",
    [
        [0, 0, 0, 1],
        [1, 1, 1, 0],
        [-1e9, 0, 1e9, 1e9],
        [0, 0, 0, 1e-30],
        [1, 1, 1, 1 + 2**-23],
        [7] * 4,
    ],
)
def test_extreme_rewards_have_finite_advantages_in_the_order_of_the_rewards(name, rewards):
    found = ADVANTAGES[name](np.array([rewards, [0, 1, 0, 1]], np.float32))
    assert np.all(np.isfinite(found))
    assert np.all(np.diff(found[0][np.argsort(rewards)]) >= 0)


def test_divided_by_a_standard_deviation_of_one_grpo_is_dr_grpo():
    """Identity 23, the advantage's part: but for the 1e-4 beside the std."""
    reward = np.array([[0.0, 1.0, 2.0], [5.0, 6.0, 4.0]])
    np.testing.assert_allclose(grpo(reward), dr_grpo(reward) / 1.0001, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_responses_and_prompts_does_not_matter(name):
    reward = np.random.default_rng(3).normal(size=(3, 4))
    found = ADVANTAGES[name](reward)
    np.testing.assert_allclose(
        ADVANTAGES[name](reward[::-1, [2, 0, 3, 1]]), found[::-1, [2, 0, 3, 1]], rtol=1e-9
    )


@pytest.mark.parametrize("name", CENTRED)
def test_adding_a_constant_to_a_group_changes_nothing(name):
    reward = np.random.default_rng(4).normal(size=(3, 4))
    shifted = reward + np.array([[5.0], [-2.0], [0.5]])
    np.testing.assert_allclose(ADVANTAGES[name](shifted), ADVANTAGES[name](reward), rtol=1e-9)


@pytest.mark.parametrize("name", CENTRED)
def test_a_group_of_one_is_refused_with_a_remedy(name):
    with pytest.raises(ValueError, match=r"K >= 2.*num_samples"):
        ADVANTAGES[name](np.zeros((3, 1), np.float32))


def test_a_batch_of_one_reward_cannot_be_whitened():
    with pytest.raises(ValueError, match="2 rewards"):
        ADVANTAGES["reinforce_plus_plus"](np.zeros((1, 1), np.float32))


def test_an_unknown_scale_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"scale_rewards='std'.*group, batch, none"):
        grpo(REWARD, scale_rewards="std")


def test_keywords_have_plain_defaults_and_a_line_of_help():
    for function in ADVANTAGES.values():
        _, *hyper = inspect.signature(function).parameters.values()
        for p in hyper:
            assert p.kind is p.KEYWORD_ONLY and isinstance(p.default, float | int | str | bool), p
            assert f"  {p.name}: " in inspect.getdoc(function).partition("Args:")[2], (
                function.__name__,
                p.name,
            )


def test_soft_overlong_falls_from_zero_to_minus_one():
    """By pencil: max 10, buffer 4 -> 0 up to 6 tokens, -1/4 per token after, -1 from 10 on."""
    found = soft_overlong(np.array([[1, 6, 7, 9, 10, 15]]), max_length=10, buffer=4)
    np.testing.assert_allclose(found, [[0, 0, -0.25, -0.75, -1, -1]])
    for bad in (0, 11, -1):
        with pytest.raises(ConfigError, match="buffer"):
            soft_overlong(np.array([[1]]), max_length=10, buffer=bad)
