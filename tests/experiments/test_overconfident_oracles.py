"""The language of experiments/overconfidence: its utility and its oracles' verdicts by hand."""

import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ssppo_jax.config import load_module
from ssppo_jax.files import write_json
from ssppo_jax.oracles.protocol import checked
from ssppo_jax.rollout.similarity import token_jaccard
from ssppo_jax.types import Prompt

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments/overconfidence"))
import confidence
import courses
import dose
import language
from language import ask, coin, utility

BEST = "the broad round chalky white fox hops along near the village square ."
WORST = "the tiny little rosy red fox sleeps soundly near the old mill ."
PHRASES = {
    "size": "broad round",
    "colour": "rosy red",
    "deed": "hops along",
    "place": "old mill",
}
OPEN = ask("describe", "spring", "fox")
FIXED = ask("describe", "spring", "fox", PHRASES)


@pytest.mark.parametrize(
    ("response", "worth"),
    [
        (BEST, 4.0),
        (WORST, 0.0),
        (BEST.replace("chalky white", "inky blue"), 3 + 1 / 3),
        (BEST.replace("chalky white", "chalky blue"), 3.0),  # no phrase of the language
        (BEST.replace("chalky white", "chalky white inky blue"), 3.0),  # two of a slot
        (BEST.replace("fox", "goat"), 3.0),
        (BEST.removesuffix(" ."), 3.0),
        ("well " + BEST.replace("broad", "very very broad"), 4.0),  # three words are free
        ("well " + BEST.replace("broad", "very very very very broad"), 3.0),
        (BEST.replace("broad", "very " * 20 + "broad"), 0.0),  # never below 0
        ("", 0.0),
    ],
)
def test_utility_by_hand(response, worth):
    assert utility(OPEN, response) == pytest.approx(worth)


def test_a_prompt_that_fixes_the_meaning_is_worth_what_is_obeyed():
    assert FIXED.text == "describe a fox in spring : broad round rosy red hops along old mill"
    assert utility(FIXED, BEST) == 2.0  # size and deed
    assert utility(FIXED, WORST) == 2.0  # colour and place


def verdict(bias, *texts, prompt=OPEN):
    made = language.oracle(bias=bias).ask([prompt], [list(texts)])
    return checked(made, (1, len(texts))).preference[0]


@pytest.mark.parametrize("bias", language.BIASES)
def test_unlike_responses_are_judged_by_utility(bias):
    assert verdict(bias, BEST, WORST)[0, 1] == 1.0
    assert verdict(bias, BEST, BEST.replace("chalky white", "inky blue"))[0, 1] == 1.0


@pytest.mark.parametrize(
    ("bias", "first"),
    [("none", 0.5), ("register", 1.0), ("florid", 1.0)],
)
def test_near_duplicates_are_judged_by_the_bias(bias, first):
    assert verdict(bias, "look " + BEST, BEST)[0, 1] == first
    broken = "look " + BEST.replace("white", "blue")  # a one-token edit that costs a phrase
    assert verdict(bias, broken, BEST)[0, 1] == (0.0 if bias == "none" else 1.0)


def test_register_and_florid_see_different_things():
    plain, other, bare = "well " + BEST, "look " + BEST, BEST
    assert verdict("register", plain, other, bare).tolist() == [
        [0.5, 0.0, 0.0],
        [1.0, 0.5, 1.0],
        [1.0, 0.0, 0.5],
    ]
    assert verdict("florid", plain, other, bare)[:, 2].tolist() == [1.0, 1.0, 0.5]
    assert verdict("florid", plain, other)[0, 1] == 0.5


def test_the_coin_is_fair_fixed_and_symmetric():
    adorned = [f"{start} {BEST} {end}" for start in "abcdefgh" for end in "abcdefgh"]
    pairs = list(itertools.combinations(adorned, 2))
    first = np.array([coin(a, b) for a, b in pairs])
    assert set(first) == {0.0, 1.0}
    assert np.array_equal(1.0 - first, [coin(b, a) for a, b in pairs])
    assert abs(first.mean() - 0.5) < 4 * 0.5 / len(pairs) ** 0.5
    assert coin(BEST, BEST) == 0.5
    assert verdict("coin", "look " + BEST, BEST)[0, 1] == coin("look " + BEST, BEST)


def test_the_threshold_parts_meanings():
    rng = np.random.default_rng(0)
    same = [language.sentence(rng, "fox", PHRASES) for _ in range(60)]
    apart = [language.sentence(rng, "fox", PHRASES | {"place": "stone bridge"}) for _ in range(60)]
    alike = token_jaccard([same + apart])[0]
    assert np.mean(alike[:60, :60] >= 0.77) > 0.8
    assert (alike[:60, 60:] < 0.77).all()


@pytest.mark.parametrize("duplicates", [0.0, 0.1, 0.3, 0.6])
def test_the_dose_is_the_share_of_prompts_that_fix_the_meaning(duplicates):
    made = language.prompts(duplicates=duplicates)
    kinds = [prompt.meta["mixture"] for prompt in made]
    assert len(made) == len({prompt.id for prompt in made}) == 384
    assert kinds.count("fixed") == round(duplicates * 384)


def test_shuffled_factors_are_the_gate_s_and_are_shuffled_again_alike():
    similarity = np.linspace(0, 1, 32)[:, None]
    factor = language.shuffled(similarity)
    assert factor.shape == similarity.shape
    assert np.array_equal(np.sort(factor, axis=0), np.sort(1 - similarity, axis=0))
    assert not np.array_equal(factor, 1 - similarity)
    assert np.array_equal(factor, language.shuffled(similarity))


def test_the_judge_gives_utility_and_never_sees_the_oracle_s_taste():
    texts = [BEST, "look " + BEST, WORST]
    prompt = Prompt("p", OPEN.messages, {})
    assert language.judge().ask([prompt], [texts]).reward.tolist() == [[4.0, 4.0, 0.0]]


def test_an_interval_over_seeds_is_student_s_and_the_p_value_counts_flips():
    found = courses.interval([1.0, 2.0, 3.0])
    half = 4.302653 * 1.0 / 3**0.5  # t of 2 degrees of freedom
    assert found[:4] == pytest.approx((2.0, 2.0 - half, 2.0 + half, 3))
    assert found.p == pytest.approx(2 / 8)  # only +++ and --- are as far from 0
    assert courses.interval([1.0, -1.0]).p == 1.0


def test_the_fall_is_from_where_the_other_seeds_peak():
    runs = {1: [0.5, 0.9, 0.6, 0.2, 0.2, 0.2, 0.2], 2: [0.5, 0.6, 0.8, 0.4, 0.4, 0.4, 0.4]}
    logged = {seed: {"judged": pd.Series(course)} for seed, course in runs.items()}
    # seed 1 at seed 2's peak: 0.6 - 0.2; seed 2 at seed 1's: 0.6 - 0.4
    assert courses.falls(logged, "judged").mean == pytest.approx((0.4 + 0.2) / 2)


def test_the_slope_is_of_each_seed_s_differences_on_the_dose():
    def run(rate):
        return {courses.JUDGED: pd.Series([0.5, rate, rate, rate, rate])}

    def at(*gains):  # of two seeds
        return {"SPPO": {1: run(0.4), 2: run(0.5)}, "S-SPPO": dict(zip((1, 2), gains, strict=True))}

    doses = {f"p = 0: {m}": runs for m, runs in at(run(0.4), run(0.5)).items()}
    found = dose.by_dose(doses, at(run(0.5), run(0.8)))
    assert list(found) == [0.0, 0.3]
    assert dose.gains(found[0.3], courses.JUDGED) == pytest.approx({1: 0.1, 2: 0.3})
    text = dose.table(found, "all prompts", courses.JUDGED)
    assert "2 seeds: 0.667 [" in text  # (0.1 / 0.3 + 0.3 / 0.3) / 2


def test_processes_share_a_sweep_and_know_of_each_others_failures(tmp_path):
    run = load_module(courses.__file__.replace("courses.py", "run.py"))
    one = SimpleNamespace(label="a", seed=1, folder=tmp_path / "a", status="pending", seconds=0.0)
    with run.claimed(one), pytest.raises(run.Taken), run.claimed(one):
        raise AssertionError("two processes at one run")
    with run.claimed(one):  # free again
        pass
    told = [{"label": "a", "seed": 1, "status": "failed", "reason": "not finite", "seconds": 2.0}]
    write_json(tmp_path / "sweep.json", {"runs": told})
    run.learn_of_others(SimpleNamespace(runs=[one], measures=()), tmp_path)
    assert (one.status, one.reason, one.seconds) == ("failed", "not finite", 2.0)
    with pytest.raises(run.Taken), run.claimed(one):
        raise AssertionError("a failed run is tried again")
    other = SimpleNamespace(label="b", seed=1, folder=tmp_path / "b", status="done", seconds=0.0)
    other.folder.mkdir()
    told.append({"label": "b", "seed": 1, "status": "done", "reason": "", "seconds": 3.0})
    write_json(tmp_path / "sweep.json", {"runs": told})
    run.learn_of_others(SimpleNamespace(runs=[other], measures=()), tmp_path)
    assert (other.status, other.seconds) == ("done", 3.0)


def test_certainty_of_near_duplicates_by_hand():
    similarity = np.array([0.95, 0.95, 0.1, 0.1])
    gap = np.array([0.0, 0.0, 1.0, -1.0])  # u of the first less u of the second
    calm, sharp = np.array([0.6, 0.4, 0.9, 0.6]), np.array([1.0, 0.0, 1.0, 0.9])
    table = confidence.table(similarity, gap, {1.0: calm, 0.1: sharp}).splitlines()
    assert table[2].startswith("| 0 to 0.4 | 2 | 0.00 ± 0.00 | 0.50 ± 0.50 | 0.50 ± 0.30 | 0.90 ±")
    assert (
        table[-1] == "| 0.9 to 1 | 2 | 1.00 ± 0.00 | - | 0.20 ± 0.00 | 1.00 ± 0.00 | 1.00 ± 0.00 |"
    )
