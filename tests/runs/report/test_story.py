"""The first screen: who judged, what they say, and what to doubt."""

import json

import pytest

from ssppo_jax.runs.report.record import read_run
from ssppo_jax.runs.report.story import tell

TRAINED = {"win_rate": 0.66, "low": 0.63, "high": 0.69, "prompts": 96}
CONFIG = {
    "model.source": "embedded:smollm2",
    "loss.name": "s_sppo",
    "oracle.name": "combine",
    "oracle.members": '[{"oracle": "sentiment"}, {"oracle": "relevance"}]',
}


def story(folder, result, config=CONFIG, metrics=()):
    (folder / "config.json").write_text(json.dumps({"config": config}))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return tell(read_run(folder))


def test_both_judges_stand_with_their_intervals_and_what_they_say(tmp_path):
    other = {"win_rate": 0.42, "low": 0.38, "high": 0.47, "reward_start": 0.58, "reward": 0.5}
    found = story(tmp_path, TRAINED | {"oracles": {"keywords": other}})
    assert found.question == (
        "Does embedded:smollm2, trained by s_sppo, answer better than its start did on 96 prompts"
        " that it was not trained on?"
    )
    one, two = found.judges
    assert (one.name, one.trained_on, one.shown) == (
        "sentiment + relevance",
        True,
        "66% (63% to 69%)",
    )
    assert (two.name, two.trained_on, two.reward) == ("keywords", False, "0.580 → 0.500")
    assert two.bar == pytest.approx({"left": 38, "width": 9, "at": 42})
    assert found.answer == (
        "By the oracle that trained it: better. By keywords, which training did not see: worse."
    )
    assert any("keywords prefers the start" in doubt for doubt in found.doubts)
    assert found.doubts[0].startswith("keywords, relevance, sentiment are functions of the text")


def test_one_judge_alone_and_length_and_selection_are_doubted(tmp_path):
    more = {"length_controlled_win_rate": 0.55, "best_iteration": 2}
    found = story(tmp_path, TRAINED | more, {"oracle.name": "pairrm"})
    assert found.answer.endswith("No other oracle was asked.")
    told = " ".join(found.doubts)
    assert "Only the oracle that trained the policy judged it" in told
    assert "at equal length pairrm gives 55%, not 66%" in told
    assert "policy_best was chosen by" in told and "no human preference" not in told


def test_a_run_under_way_is_told_by_its_last_evaluation(tmp_path):
    rows = []
    for iteration, rate in ((2, 0.52), (4, 0.6)):
        values = {
            f"{name}win_rate{end}": rate + by
            for name in ("", "keywords/", "previous/", "keywords/previous/")
            for end, by in (("", 0), ("_low", -0.05), ("_high", 0.05))
        }
        rows.append({"phase": "evaluate", "iteration": iteration, "step": 0, "values": values})
    found = story(tmp_path, {}, {}, rows)
    assert [(judge.name, judge.rate) for judge in found.judges] == [
        ("the training oracle", 0.6),
        ("keywords", 0.6),
    ]


def test_a_run_on_given_responses_is_told_by_its_held_out_rows(tmp_path):
    config = {"model.source": "random:tiny", "loss.name": "dpo", "data.source.name": "answered"}
    rows = []
    for iteration, loss in ((0, 0.693), (1, 0.02)):
        values = {"prompts": 8.0}
        for name, value in (("loss", loss), ("rewards/accuracies", 1.0), ("rewards/margins", 2.0)):
            values |= {name: value, f"{name}_low": value - 0.01, f"{name}_high": value + 0.01}
        rows.append({"phase": "evaluate", "iteration": iteration, "step": 0, "values": values})
    found = story(tmp_path, {}, config, rows)
    assert "Does random:tiny learn from the given responses with dpo" in found.question
    assert "loss: 0.693 → 0.020 (0.010 to 0.030)" in found.answer and not found.judges
    assert "rewards/accuracies: 1.000 (0.990 to 1.010)" in found.answer
    assert "let an oracle judge it" in found.doubts[0]
    run = read_run(tmp_path)
    assert run.given and not any("samples.jsonl" in note for note in run.notes)
    assert "no held-out rows were evaluated" in story(tmp_path, {}, config).answer
    assert not story(tmp_path, {}, CONFIG, rows).answer.startswith("Held-out")


@pytest.mark.parametrize("config", [None, [], {"oracle.name": "combine", "oracle.members": "["}])
@pytest.mark.parametrize("result", [{}, [], {"win_rate": None, "oracles": 3}])
def test_damaged_records_give_a_story_all_the_same(tmp_path, config, result):
    found = story(tmp_path, result, config)
    assert found.answer == "Not known yet: no evaluation was recorded." and found.judges == []
