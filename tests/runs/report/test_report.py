"""Reports of fabricated run folders, whole, damaged and hostile."""

import html.parser
import json
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from ssppo_jax.errors import UserError
from ssppo_jax.runs.report import build as report
from ssppo_jax.runs.report import plots, sections
from ssppo_jax.runs.report import record as run_record

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>&amp; \"q\""


def jsonl(path, rows, tail=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def record(phase, step, iteration, time, values, **wall):
    return dict(
        phase=phase, step=step, iteration=iteration, values=values, wall={"time": time, **wall}
    )


def evaluation(iteration, time):
    rate = 0.5 + 0.05 * iteration
    bounds = dict(win_rate=rate, win_rate_low=rate - 0.04, win_rate_high=rate + 0.04)
    return record("evaluate", 2 * iteration, iteration, time, bounds)


def training(step, iteration, time, **more):
    return record("train", step, iteration, time, {"loss": 10.0 / step, **more})


def detailed(step, iteration, time):
    values = {
        "term/regression": 9.0 / step,
        "term/repulsion": 0.8,
        "grad_norm": 2.0,
        "length_p50": 30.0,
    }
    values |= {
        "grad_norm/repulsion": 0.1,
        "kl/pi_t": 0.1 * step,
        "entropy": 2.0,
        "odd": step,
        "$x_1$": 2,
        HOSTILE: 1.5,
    }
    return training(step, iteration, time, **values)


def pair(similarity, margin, iteration=1):
    ends = lambda m: [0.5 + m / 2, 0.5 - m / 2]  # noqa: E731
    gated = ends(margin * (1 - similarity))
    texts = dict(
        prompt_id="a", prompt="p", winner="w", loser="l", p_win=0.5 + margin / 2, tied=False
    )
    return dict(
        iteration=iteration, similarity=similarity, win_rate=ends(margin), target=gated, **texts
    )


@pytest.fixture
def workdir(tmp_path):
    """A run's texts and settings, without anything to plot."""
    stages = [("start", 0.1), ("iter_2", 0.3), ("iter_10", 0.4), ("final", 0.8)]
    texts = [
        dict(
            stage=stage,
            prompt_id=i,
            prompt=f"prompt {i} {HOSTILE}",
            response=f"{stage} reply {i}",
            score=score,
        )
        for i in range(3)
        for stage, score in stages
    ]
    jsonl(tmp_path / "samples.jsonl", texts)
    config = {"seed": 7, "loss.name": "s_sppo", "loss.beta": 0.001}
    (tmp_path / "config.json").write_text(
        json.dumps(dict(config=config, command=f"train {HOSTILE}", jax="9.9.9"))
    )
    (tmp_path / "result.json").write_text(
        json.dumps(dict(win_rate=0.6125, low=0.57, high=0.65, prompts=96))
    )
    return tmp_path


@pytest.fixture
def drawn(workdir):
    """A run with something to plot, which takes time."""
    metrics = [
        evaluation(0, 100.0),
        training(1, 1, 103.0),
        training(2, 1, 104.5),
        evaluation(1, 106.5),
    ]
    jsonl(workdir / "metrics.jsonl", metrics)
    jsonl(workdir / "pairs.jsonl", [pair(0.1, 0.4), pair(0.5, 0.6), pair(0.95, 0.8)])
    return workdir


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text a reader sees."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if data.strip():
            self.words.append(data)

    def labels(self):
        return [attrs["aria-label"] for _, attrs in self.tags if attrs.get("role") == "img"]


def test_a_whole_run_shows_every_plot_and_has_nothing_to_complain_of(drawn):
    jsonl(
        drawn / "metrics.jsonl",
        [evaluation(0, 1.0), detailed(1, 1, 3.0), detailed(2, 1, 4.5), evaluation(1, 5.0)],
    )
    path = report.build_report(drawn)
    assert path == drawn / "report.html" and not (drawn / "report.html.tmp").exists()
    page = Page(path)
    wanted = [
        "loss",
        "term/regression",
        "term/repulsion",
        "grad_norm",
        "grad_norm/repulsion",
        "kl/pi_t",
        "entropy",
    ]
    wanted += [
        "win rate over iterations with its 95% interval",
        "win-rate margin against similarity, raw and gated",
    ]
    wanted += ["length_p50", "odd", "$x_1$", HOSTILE, "seconds by phase and iteration"]
    wanted += ["wins 61% (57% to 65%) of comparisons with its start"]
    assert sorted(page.labels()) == sorted(wanted)
    assert "Incomplete records" not in page.text
    assert '"command"' not in page.text  # it is no part of the configuration
    assert "$x_1$" in page.words  # not set as mathematics
    for piece in (
        "0.613",
        "0.570 to 0.650",
        "96",
        '"loss.beta": 0.001',
        '"seed": 7',
        "jax",
        "9.9.9",
    ):
        assert piece in page.text, piece


def test_nothing_is_loaded_from_anywhere_and_nothing_runs(drawn):
    jsonl(drawn / "metrics.jsonl", [evaluation(0, 1.0), detailed(1, 1, 3.0)])
    page = Page(report.build_report(drawn))
    assert {tag for tag, _ in page.tags} & {
        "script",
        "img",
        "iframe",
        "link",
        "object",
        "embed",
        "form",
    } == set()
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("href", "xlink:href", "src") or value.startswith(("#", "data:")), (
                tag,
                value,
            )
    assert "url(http" not in (drawn / "report.html").read_text() and "@import" not in page.text


def test_hostile_text_is_shown_as_text_wherever_it_comes_from(workdir):
    text = dict(prompt_id=HOSTILE, prompt=HOSTILE, response=HOSTILE)
    stages = ("start", "final", HOSTILE)
    jsonl(workdir / "samples.jsonl", [dict(stage=stage, **text) for stage in stages])
    jsonl(workdir / "pairs.jsonl", [pair(0.5, 0.5, iteration=HOSTILE)])
    config = {"config": {HOSTILE: HOSTILE}, "command": HOSTILE, HOSTILE: HOSTILE}
    (workdir / "config.json").write_text(json.dumps(config))
    path = report.build_report(workdir)
    raw = path.read_text()
    assert "<script" not in raw and "<img" not in raw
    page = Page(path)
    assert page.words.count(HOSTILE) >= 6  # prompt, two responses, command, iteration, version


def test_samples_stand_side_by_side_with_the_last_stage(workdir):
    text = Page(report.build_report(workdir)).text
    assert "start reply 0" in text and "final reply 2" in text and "iter_10 reply" not in text
    assert "score 0.100" in text and "score 0.800" in text
    rows = [json.loads(line) for line in (workdir / "samples.jsonl").read_text().splitlines()]
    jsonl(workdir / "samples.jsonl", [row for row in rows if row["stage"] != "final"])
    text = Page(report.build_report(workdir)).text
    assert "iter_10 reply 0" in text and "iter_2 reply" not in text
    stages = ["final", "iter_10", "iter_9", "start"]
    assert (
        sorted(stages, key=sections.stage_order) == stages[::-1]
    )  # by number: as text, iter_9 would be the later


def test_an_empty_folder_gives_a_page_that_names_every_missing_file(tmp_path):
    page = Page(report.build_report(tmp_path))
    pairs = "pairs.jsonl (groups.jsonl, opponents.jsonl, responses.jsonl)"
    for name in ("config.json", "result.json", "metrics.jsonl", pairs, "samples.jsonl"):
        assert f"{name} is missing." in page.words
    assert page.labels() == []


@pytest.mark.parametrize("name", ["metrics", "pairs", "samples"])
def test_a_torn_last_line_is_told_and_the_rest_is_shown(drawn, name):
    whole = len(Page(report.build_report(drawn)).labels())
    with open(drawn / f"{name}.jsonl", "ab") as file:
        file.write(b'{"phase": "train", "loss": 1\xf0\x9f')
    page = Page(report.build_report(drawn))
    assert f"{name}.jsonl: the last line is torn" in page.text and len(page.labels()) == whole


def test_bad_lines_are_counted_by_number(drawn):
    path = drawn / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "oops", "[1, 2]", *lines[1:], "null"]) + "\n")
    assert (
        "metrics.jsonl: 3 lines are not JSON objects and are left out (line 2, 3, 7)."
        in Page(report.build_report(drawn)).words
    )


def test_line_ends_inside_a_text_tear_no_record(drawn):
    whole = Page(report.build_report(drawn))
    for name in ("samples", "pairs"):
        path = drawn / f"{name}.jsonl"
        lines = path.read_text().split("\n")
        odd = {
            key: f"{value}\u2028\x85."
            for key, value in json.loads(lines[0]).items()
            if key in ("prompt", "response", "winner")
        }
        lines[0] = json.dumps(json.loads(lines[0]) | odd, ensure_ascii=False)
        path.write_text("\n".join(lines), encoding="utf-8")
    page = Page(report.build_report(drawn))
    assert "left out" not in page.text and page.labels() == whole.labels()


def test_an_unusable_pair_is_told_and_left_out(workdir):
    bad = [
        {},
        pair(float("nan"), 0.5),
        pair(0.5, 0.5) | {"target": [0.5]},
        pair(0.5, 0.5) | {"win_rate": ["a", 1]},
    ]
    jsonl(workdir / "pairs.jsonl", [pair(0.2, 0.5), *bad])
    text = Page(report.build_report(workdir)).text
    assert "4 pairs lack a finite similarity" in text and "1 selected pairs" in text


def test_malformed_files_never_stop_the_report(workdir):
    (workdir / "config.json").write_text('{"a": ')
    (workdir / "result.json").write_text('["no", "dict"]')
    jsonl(
        workdir / "samples.jsonl",
        [{}, {"stage": None, "prompt_id": [1], "prompt": 3, "response": "\ud800"}],
    )
    odd = dict(
        phase=["x"],
        step="one",
        iteration=float("nan"),
        time="noon",
        seconds=1,
        loss=10**400,
        flag=True,
    )
    jsonl(
        workdir / "metrics.jsonl",
        [odd, {"values": 3, "wall": [], "nonfinite": 1}, {}, evaluation(0, 1.0)],
    )
    page = Page(report.build_report(workdir))
    assert "config.json is not valid JSON" in page.text
    assert "win rate over iterations with its 95% interval" in page.labels()


def test_margins_above_ninety_percent_similarity_are_stated(drawn):
    text = Page(report.build_report(drawn)).text
    assert "Above 0.9 similarity (1 pairs) the mean margin is 0.800 raw and 0.040 gated." in text


def test_numbers_that_are_not_finite_are_counted_in_the_plot(workdir):
    lost = record("train", 2, 1, 0.0, {"loss": None}) | {
        "nonfinite": ["loss"]
    }  # as the log writes NaN
    flat = dict(phase="train", step=3, iteration=1, loss=float("inf"))
    jsonl(workdir / "metrics.jsonl", [training(1, 1, 0.0), lost, flat])
    assert "loss  (2 non-finite)" in Page(report.build_report(workdir)).words


def test_every_number_of_a_record_is_a_row_of_the_metrics():
    metrics = [
        dict(phase="train", step=4, iteration=1, loss=2.0, ok=True, note="text"),
        record("generate", 5, "two", 3.0, {"loss": None, "big": 10**400}, rate=7),
    ]
    frame = run_record.metric_frame(metrics).astype(object)
    assert frame.where(frame.notna(), None).to_numpy().tolist() == [
        [0, "train", 4, 1, "loss", 2],
        [1, "generate", 5, None, "loss", None],
        [1, "generate", 5, None, "big", np.inf],
        [1, "generate", 5, None, "time", 3],
        [1, "generate", 5, None, "rate", 7],
    ]


def test_a_metric_is_drawn_over_steps_in_training_and_over_iterations_elsewhere(monkeypatch):
    monkeypatch.setattr(plots, "_plot", lambda figure, label: figure)
    for phase, x in (("train", [4, 5]), ("judge", [1, 2])):
        metrics = [
            dict(phase=phase, step=4, iteration=1, a=2.0, b=3.0),
            dict(phase=phase, step=5, iteration=2, a=1.0, b=float("nan")),
        ]
        (ax,) = plots.plot_series("t", run_record.metric_frame(metrics)).axes
        drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
        assert drawn == {"a": [[x[0], 2], [x[1], 1]], "b": [[x[0], 3]]}
        assert ax.get_title(loc="left") == "t  (1 non-finite)"


@pytest.mark.parametrize(
    ("key", "title"),
    [
        ("effective_update_ratio", "Gates, clips and importance weights"),
        ("clip_ratio/region_mean", "Gates, clips and importance weights"),
        ("sequence_weight/max", "Gates, clips and importance weights"),
        ("sequence_ratio/mean", "Gates, clips and importance weights"),
        ("ratio/max", "Gates, clips and importance weights"),
        ("evaluate: ratio", None),
        ("judge: reward/std", "Rewards and advantages"),
        ("judge: group/truncated", "Rewards and advantages"),
        ("accuracy", "Rewards and advantages"),
        ("format", "Rewards and advantages"),
        ("judge: advantage/abs", "Rewards and advantages"),
        ("generate: reward", None),
        ("kl_initial", "KL divergence"),
        ("policy/kl", "KL divergence"),
        ("weekly", None),
        ("term/kl", "Loss and its terms"),
        ("grad_norm/kl", "Gradient norms"),
        ("rewards/margins", "Rewards and advantages"),
        ("judge: frac_reward_zero_std", "Rewards and advantages"),
        ("tokens_per_second", "Time and throughput"),
        ("tokens/s", "Time and throughput"),
        ("loss_per_sample", "Loss and its terms"),
        ("score_per_sample", None),
        ("eos_rate", "Entropy, EOS rate, repetition"),
        ("length_p50", "Completion length"),
    ],
)
def test_each_metric_finds_its_section(key, title):
    """Keys are those of the train phase unless another stands before them."""
    phase, colon, rest = key.partition(": ")
    phase, key = (phase, rest) if colon else ("train", key)
    assert sections.topic_of(phase, key) == (title or "")


def test_phase_seconds_come_from_the_record_or_from_the_clock():
    metrics = [
        dict(phase="generate", iteration=1, time=10.0, seconds=4.0),
        dict(phase="train", iteration=1, time=12.0),
        dict(phase="train", iteration=1, time=15.0),
        dict(
            phase="train", iteration=2, time=5.0
        ),  # the clock went back: a restart on another machine
        dict(phase="generate", iteration=2, time=50.0, seconds=6.0),
        dict(phase="train", iteration=2, time=51.5),
    ]
    seconds = run_record.phase_seconds(run_record.metric_frame(metrics))
    assert seconds.to_dict() == {"generate": {1: 4.0, 2: 6.0}, "train": {1: 5.0, 2: 1.5}}


def test_many_pairs_embed_a_bitmap_and_stay_small(workdir):
    rng = np.random.default_rng(0)
    jsonl(workdir / "pairs.jsonl", [pair(s, m) for s, m in rng.random((3000, 2)).tolist()])
    path = report.build_report(workdir)
    assert path.stat().st_size < 500_000 and "data:image/png;base64" in path.read_text()


def test_a_long_run_of_samples_is_cut_with_a_count(workdir):
    texts = [
        dict(stage="start", prompt_id=i, prompt=f"prompt {i}", response="r", score=0.0)
        for i in range(205)
    ]
    jsonl(workdir / "samples.jsonl", texts)
    text = Page(report.build_report(workdir)).text
    assert (
        "prompt 199" in text
        and "prompt 200" not in text
        and "5 more prompts are in samples.jsonl" in text
    )


def test_the_same_folder_gives_the_same_page(drawn):
    first = report.build_report(drawn).read_bytes()
    assert report.build_report(drawn).read_bytes() == first


def test_plots_have_black_ink_on_no_ground_which_dark_mode_inverts(drawn):
    raw = report.build_report(drawn).read_text()
    dark = raw[raw.index("prefers-color-scheme: dark") : raw.index("</style>")]
    assert "svg { filter: invert(" in dark and "<metadata" not in raw
    figures = raw[raw.index("<main>") :]
    grounds = re.findall(r'<g id="patch_1">\s*<path [^>]*style="([^"]*)"', figures)
    assert len(grounds) == figures.count("<svg") and set(grounds) == {"fill: none"}


def test_what_a_figure_refers_to_is_its_own(drawn):
    """Ids hold for the whole page, so a figure's clip path must not be another's."""
    raw = report.build_report(drawn).read_text()
    wanted = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', raw))
    ids = Counter(attrs["id"] for _, attrs in Page(drawn / "report.html").tags if "id" in attrs)
    assert wanted and {ids[name] for name in wanted} == {1}


def test_the_first_figure_on_a_machine_prints_nothing(tmp_path):
    """matplotlib tells of the font cache that it makes then."""
    code = (
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from ssppo_jax.runs.report.plots import drawing\n"
        "with drawing((2, 2)) as figure:\n    figure.savefig('figure.png')\n"
    )
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((tmp_path / "cache").glob("fontlist*")) and (tmp_path / "figure.png").is_file()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        report.build_report(tmp_path / "nowhere")


def test_a_bare_configuration_is_shown_and_the_missing_command_is_told(workdir):
    (workdir / "config.json").write_text('{"seed": 7}')
    text = Page(report.build_report(workdir)).text
    assert (
        '"seed": 7' in text
        and "Not recorded (config.json)." in text
        and "the run recorded none" in text
    )


def test_every_sample_of_a_prompt_is_paired_with_one_of_the_other_stage(workdir):
    stages = [(stage, i) for stage in ("start", "final") for i in range(3)]
    texts = [
        dict(stage=stage, prompt_id="a", prompt="p", response=f"{stage} {i}") for stage, i in stages
    ]
    jsonl(workdir / "samples.jsonl", texts[:-1])
    words = Page(report.build_report(workdir)).words
    wanted = re.compile(r"(start|final) \d|not recorded")
    shown = [word for word in words if wanted.fullmatch(word)]
    first = ["start 0", "final 0"]  # on the first screen, and again further down
    assert shown == [*first, *first, "start 1", "final 1", "start 2", "not recorded"]
    assert "2 more samples" in words


def test_steps_and_iterations_are_those_trained(drawn):
    words = Page(report.build_report(drawn)).words
    assert (
        words[words.index("optimizer steps") + 1] == "2"
        and words[words.index("iterations") + 1] == "1"
    )


# ---- runs on rewards -----------------------------------------------------------------------------


def group(iteration, rewards, answer="42", **more):
    responses = [f"response {iteration} of reward {r}" for r in rewards]
    worth = [r - sum(rewards) / len(rewards) for r in rewards]
    base = dict(
        iteration=iteration,
        prompt_id="a",
        prompt=f"sum {iteration}",
        answer=answer,
        responses=responses,
    )
    return (
        base
        | dict(reward=rewards, advantage=worth, length=[7 + i for i in range(len(rewards))])
        | more
    )


@pytest.fixture
def rewarded(workdir):
    """A run of groups: held-out rewards from iteration 0 on, gates, and no pairs."""

    def scores(iteration, accuracy):
        values = dict(
            reward=2 * accuracy,
            reward_low=2 * accuracy - 0.1,
            reward_high=2 * accuracy + 0.1,
            prompts=64.0,
        )
        values |= dict(
            accuracy=accuracy, accuracy_low=accuracy - 0.05, accuracy_high=accuracy + 0.05
        )
        return record(
            "evaluate",
            2 * iteration,
            iteration,
            iteration,
            {"win_rate": 0.5, **values, "entropy": 1.0},
        )

    judged = record("judge", 0, 0, 0.1, {"reward/std": 0.4, "advantage/abs": 0.3, "other": 1.0})
    train = training(
        1,
        0,
        0.2,
        effective_update_ratio=0.9,
        **{"clip_ratio/region_mean": 0.1, "sequence_ratio/max": 1.2},
    )
    jsonl(workdir / "metrics.jsonl", [scores(0, 0.25), judged, train, scores(2, 0.5)])
    jsonl(
        workdir / "groups.jsonl",
        [group(0, [0.0, 0.0]), group(0, [0.25, 1.0, 0.0, 0.5]), group(1, [1.0, 0.5])],
    )
    result = dict(
        win_rate=0.61,
        accuracy=0.5,
        accuracy_start=0.25,
        accuracy_gain_low=0.125,
        accuracy_gain_high=0.375,
    )
    (workdir / "result.json").write_text(json.dumps(result | dict(reward=1.0, reward_start=0.5)))
    return workdir


def test_a_run_on_rewards_shows_its_own_sections_and_has_nothing_to_complain_of(rewarded):
    page = Page(report.build_report(rewarded))
    assert "Incomplete records" not in page.text and "pairs" not in page.text
    wanted = [
        "reward over iterations with its 95% interval",
        "accuracy over iterations with its 95% interval",
    ]
    wanted += [
        "group rewards over iterations and their spread",
        "judge: reward/std",
        "judge: advantage/abs",
        "effective_update_ratio",
    ]
    assert set(wanted) <= set(page.labels())
    drawn = {"evaluate: accuracy", "evaluate: reward_low", "evaluate: win_rate"}
    assert drawn & set(page.labels()) == {"evaluate: win_rate"}  # which has no interval here
    for title in ("Held-out results", "Groups trained on", "Gates, clips and importance weights"):
        assert title in page.words


def test_final_rewards_stand_with_where_they_started(rewarded):
    words = Page(report.build_report(rewarded)).words
    tiles = [
        "final accuracy (start)",
        "0.500 (0.250)",
        "accuracy gained, 95% interval",
        "0.125 to 0.375",
    ]
    assert words[(i := words.index(tiles[0])) : i + 4] == tiles
    assert words[words.index("final reward (start)") + 1] == "1.000 (0.500)"
    assert words[words.index("groups trained on") + 1] == "3"


def test_groups_of_the_first_and_last_iteration_show_responses_from_best_to_worst(rewarded):
    more = [group(0, [0.0, 1.0], prompt=f"extra {i}") for i in range(5)] + [
        group(2, [0.5, 0.5], answer=None)
    ]
    with open(rewarded / "groups.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in more)
    words = Page(report.build_report(rewarded)).words
    rewards = [re.fullmatch(r"response (\d) of reward (.*)", word) for word in words]
    assert [(m[1], m[2]) for m in rewards if m] == [
        *(
            ("0", r) for r in ("1.0", "0.5", "0.25", "0.0")
        ),  # the first group, of equal rewards, gives way
        *(("0", r) for r in ("1.0", "0.0", "1.0", "0.0")),
        *(("2", r) for r in ("0.5", "0.5")),
    ]
    best = words.index("response 0 of reward 1.0")
    assert words[best - 2 : best] == ["reward 1.000", "advantage +0.562, 8 tokens"]
    assert (
        words.count("answer: 42") == 3 and "answer: None" not in words
    )  # three of seven groups, and one without


def test_of_a_large_group_the_best_and_the_worst_are_open_and_the_rest_folded(rewarded):
    jsonl(rewarded / "groups.jsonl", [group(0, [2.0, 5.0, 0.0, 4.0, 1.0, 3.0])])
    raw = report.build_report(rewarded).read_text()
    places = [raw.index(f"response 0 of reward {r}.0") for r in (5, 4, 3, 2, 1, 0)]
    fold = [raw.index("2 responses between"), raw.index("</details>", places[2])]
    order = [*places[:2], fold[0], *places[2:4], fold[1], *places[4:]]
    assert order == sorted(order)


def test_group_rewards_are_drawn_as_mean_best_and_worst_of_each_iteration(monkeypatch):
    monkeypatch.setattr(plots, "_plot", lambda figure, label: figure)
    rows = [(0, 0.5, 1.0, 0.0), (0, 0.0, 0.0, 0.0), (2, 0.5, 1.0, 0.0)]
    groups = pd.DataFrame(rows, columns=["iteration", "mean", "best", "worst"])
    over, spread = plots.plot_group_rewards(groups).axes
    assert {line.get_label(): list(line.get_ydata()) for line in over.lines} == {
        "mean": [0.25, 0.5],
        "best of K": [0.5, 1.0],
        "worst of K": [0.0, 0.0],
    }
    assert [text.get_text() for text in spread.get_legend().get_texts()] == [
        "iteration 0",
        "iteration 2",
    ]


def test_unusable_groups_are_told_and_left_out(rewarded):
    odd = [
        {},
        group(0, [1.0, float("nan")]),
        group(0, [1.0]) | {"responses": []},
        group(None, [1.0]),
        group(0, [True]),
    ]
    odd.append(group(0, [1.0, 1e300]))
    with open(rewarded / "groups.jsonl", "a") as file:
        file.writelines(
            json.dumps(row) + "\n"
            for row in [*odd, group(0, [1.0, 0.0], advantage="none", length=[3])]
        )
        file.write('{"iteration": 0, "promp')
    text = Page(report.build_report(rewarded)).text
    assert (
        "groups.jsonl: 6 groups lack an iteration or a finite reward for every response; left out."
        in text
    )
    assert (
        "groups.jsonl: the last line is torn" in text
        and "4 groups, 1 of them with equal rewards" in text
    )
    jsonl(rewarded / "groups.jsonl", odd)
    assert "No groups were recorded." in Page(report.build_report(rewarded)).words


def test_hostile_groups_and_opponents_are_shown_as_text(rewarded):
    hostile = group(
        0, [1.0, 0.0], prompt=HOSTILE, answer=HOSTILE, responses=[HOSTILE, {"a": HOSTILE}]
    )
    jsonl(rewarded / "groups.jsonl", [hostile])
    rows = [
        dict(iteration=HOSTILE, prompt=HOSTILE, policy=HOSTILE, opponent=HOSTILE, p_win="x"),
        {},
    ]
    jsonl(rewarded / "opponents.jsonl", rows)
    path = report.build_report(rewarded)
    assert "<script" not in path.read_text() and "<img" not in path.read_text()
    assert Page(path).words.count(HOSTILE) >= 6


def test_a_run_against_an_opponent_shows_both_and_how_often_it_wins(rewarded):
    (rewarded / "groups.jsonl").unlink()
    rows = [
        dict(iteration=i, prompt=f"p{i}", policy=f"own {i}", opponent=f"other {i}", p_win=p)
        for i, p in ((0, 0.25), (0, 0.75), (1, 0.9), (2, 1.0))
    ]
    jsonl(rewarded / "opponents.jsonl", rows)
    page = Page(report.build_report(rewarded))
    assert "Incomplete records" not in page.text and "No pairs" not in page.text
    table = page.words[page.words.index("mean P(policy > opponent)") + 1 :]
    assert table[:9] == ["0", "2", "0.500", "1", "1", "0.900", "2", "1", "1.000"]
    assert "own 0" in page.words and "other 2" in page.words and "own 1" not in page.words
    assert "wins with 0.250" in page.words


def test_held_out_quantities_are_those_with_an_interval_and_the_win_rate_comes_last():
    full = dict(
        win_rate=0.6,
        win_rate_low=0.5,
        win_rate_high=0.7,
        accuracy=0.3,
        accuracy_low=None,
        accuracy_high=0.4,
    )
    metrics = [dict(phase="evaluate", iteration=2, reward=1.0, reward_low=0.5, **full)]
    metrics += [
        dict(phase="evaluate", iteration=4, accuracy="x"),
        dict(phase="train", iteration=2, a=1, a_low=1, a_high=1),
    ]
    found = run_record.held_out(run_record.metric_frame(metrics))
    assert list(found) == ["accuracy", "win_rate"]
    assert found["win_rate"].to_numpy().tolist() == [[2, 0.6, 0.5, 0.7]]
    ((iteration, value, low, high),) = found["accuracy"].to_numpy()
    assert (iteration, value, high) == (2, 0.3, 0.4) and np.isnan(low)
