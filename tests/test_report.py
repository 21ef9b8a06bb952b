import html.parser
import json

import numpy as np
import pytest

from ssppo_jax import report
from ssppo_jax.errors import UserError

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>&amp; \"q\""


def jsonl(path, rows, tail=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def evaluation(iteration, time):
    rate = 0.5 + 0.05 * iteration
    bounds = dict(win_rate=rate, win_rate_low=rate - 0.04, win_rate_high=rate + 0.04)
    return dict(phase="evaluate", step=2 * iteration, iteration=iteration, time=time, **bounds)


def training(step, iteration, time):
    return dict(phase="train", step=step, iteration=iteration, time=time, loss=10.0 / step)


def detailed(step, iteration, time):
    values = {"term/regression": 9.0 / step, "term/repulsion": 0.8, "grad_norm": 2.0, "length_p50": 30.0}
    values |= {"grad_norm/repulsion": 0.1, "kl/pi_t": 0.1 * step, "entropy": 2.0, "odd": step, HOSTILE: 1.5}
    return training(step, iteration, time) | values


def pair(similarity, margin, iteration=1):
    ends = lambda m: [0.5 + m / 2, 0.5 - m / 2]  # noqa: E731
    gated = ends(margin * (1 - similarity))
    texts = dict(prompt_id="a", prompt="p", winner="w", loser="l", p_win=0.5 + margin / 2, tied=False)
    return dict(iteration=iteration, similarity=similarity, win_rate=ends(margin), target=gated, **texts)


@pytest.fixture
def workdir(tmp_path):
    metrics = [evaluation(0, 100.0), training(1, 1, 103.0), training(2, 1, 104.5), evaluation(1, 106.5)]
    jsonl(tmp_path / "metrics.jsonl", metrics)
    jsonl(tmp_path / "pairs.jsonl", [pair(0.1, 0.4), pair(0.5, 0.6), pair(0.95, 0.8)])
    stages = [("start", 0.1), ("iter_2", 0.3), ("iter_10", 0.4), ("final", 0.8)]
    texts = [
        dict(stage=stage, prompt_id=i, prompt=f"prompt {i} {HOSTILE}", response=f"{stage} reply {i}", score=score)
        for i in range(3)
        for stage, score in stages
    ]
    jsonl(tmp_path / "samples.jsonl", texts)
    (tmp_path / "config.json").write_text(json.dumps({"seed": 7, "loss": {"name": "s_sppo", "beta": 0.001}}))
    (tmp_path / "run.json").write_text(json.dumps({"command": ["train", HOSTILE], "versions": {"jax": "9.9.9"}}))
    (tmp_path / "result.json").write_text(json.dumps(dict(mean=0.6125, low=0.57, high=0.65, n=96)))
    return tmp_path


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
        self.words.append(data)

    def labels(self):
        return [attrs["aria-label"] for tag, attrs in self.tags if tag == "svg"]


def test_a_whole_run_shows_every_plot_and_has_nothing_to_complain_of(workdir):
    jsonl(workdir / "metrics.jsonl", [evaluation(0, 1.0), detailed(1, 1, 3.0), detailed(2, 1, 4.5), evaluation(1, 5.0)])
    path = report.build_report(workdir)
    assert path == workdir / "report.html" and not (workdir / "report.html.tmp").exists()
    page = Page(path)
    wanted = ["loss", "term/regression", "term/repulsion", "grad_norm", "grad_norm/repulsion", "kl/pi_t", "entropy"]
    wanted += ["win rate over iterations with its 95% interval", "win-rate margin against similarity, raw and gated"]
    wanted += ["length_p50", "odd", HOSTILE, "seconds by phase and iteration"]
    assert sorted(page.labels()) == sorted(wanted)
    assert "Incomplete records" not in page.text
    for piece in ("0.613", "0.570 to 0.650", "96", '"beta": 0.001', '"seed": 7', "jax", "9.9.9"):
        assert piece in page.text, piece


def test_nothing_is_loaded_from_anywhere_and_nothing_runs(workdir):
    jsonl(workdir / "metrics.jsonl", [evaluation(0, 1.0), detailed(1, 1, 3.0)])
    page = Page(report.build_report(workdir))
    assert {tag for tag, _ in page.tags} & {"script", "img", "iframe", "link", "object", "embed", "form"} == set()
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("href", "xlink:href", "src") or value.startswith(("#", "data:")), (tag, value)
    assert "url(http" not in (workdir / "report.html").read_text() and "@import" not in page.text


def test_hostile_text_is_shown_as_text_wherever_it_comes_from(workdir):
    jsonl(workdir / "samples.jsonl", [dict(stage=s, prompt_id=HOSTILE, prompt=HOSTILE, response=HOSTILE) for s in
                                      ("start", "final", HOSTILE)])  # fmt: skip
    jsonl(workdir / "pairs.jsonl", [pair(0.5, 0.5, iteration=HOSTILE)])
    (workdir / "config.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    (workdir / "run.json").write_text(json.dumps({"command": HOSTILE, "versions": {HOSTILE: HOSTILE}, HOSTILE: 1}))
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


def test_an_empty_folder_gives_a_page_that_names_every_missing_file(tmp_path):
    page = Page(report.build_report(tmp_path))
    for name in ("config.json", "run.json", "result.json", "metrics.jsonl", "pairs.jsonl", "samples.jsonl"):
        assert f"{name} is missing." in page.words
    assert page.labels() == []


@pytest.mark.parametrize("name", ["metrics", "pairs", "samples"])
def test_a_torn_last_line_is_told_and_the_rest_is_shown(workdir, name):
    whole = len(Page(report.build_report(workdir)).labels())
    with open(workdir / f"{name}.jsonl", "ab") as file:
        file.write(b'{"phase": "train", "loss": 1\xf0\x9f')
    page = Page(report.build_report(workdir))
    assert f"{name}.jsonl: the last line is torn" in page.text and len(page.labels()) == whole


def test_bad_lines_are_counted_by_number(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "oops", "[1, 2]", *lines[1:], "null"]) + "\n")
    assert (
        "metrics.jsonl: 3 lines are not JSON objects and are left out (line 2, 3, 7)."
        in Page(report.build_report(workdir)).words
    )


def test_an_unusable_pair_is_told_and_left_out(workdir):
    bad = [{}, pair(float("nan"), 0.5), pair(0.5, 0.5) | {"target": [0.5]}, pair(0.5, 0.5) | {"win_rate": ["a", 1]}]
    jsonl(workdir / "pairs.jsonl", [pair(0.2, 0.5), *bad])
    text = Page(report.build_report(workdir)).text
    assert "4 pairs lack a finite similarity" in text and "1 selected pairs" in text


def test_malformed_files_never_stop_the_report(workdir):
    (workdir / "config.json").write_text('{"a": ')
    (workdir / "result.json").write_text('["no", "dict"]')
    (workdir / "run.json").write_text('{"command": {"a": 1}, "versions": [1]}')
    jsonl(workdir / "samples.jsonl", [{}, {"stage": None, "prompt_id": [1], "prompt": 3, "response": "\ud800"}])
    odd = dict(phase=["x"], step="one", iteration=float("nan"), time="noon", loss=10**400, flag=True, nest={"kl": 0.1})
    jsonl(workdir / "metrics.jsonl", [odd, {}, {"phase": "evaluate", "iteration": 0, "win_rate": 0.5}])
    page = Page(report.build_report(workdir))
    assert "config.json is not valid JSON" in page.text
    assert "win rate over iterations with its 95% interval" in page.labels()


def test_margins_above_ninety_percent_similarity_are_stated(workdir):
    text = Page(report.build_report(workdir)).text
    assert "Above 0.9 similarity (1 pairs) the mean margin is 0.800 raw and 0.040 gated." in text


def test_numbers_that_are_not_finite_are_counted_in_the_plot(workdir):
    rows = [dict(phase="train", step=i, iteration=1, loss=v) for i, v in enumerate([1.0, float("nan"), float("inf")])]
    jsonl(workdir / "metrics.jsonl", rows)
    assert "loss  (2 non-finite)" in Page(report.build_report(workdir)).words


def test_metric_lines_are_series_by_phase_over_steps_or_iterations():
    metrics = [
        dict(phase="train", step=4, iteration=1, time=1.0, loss=2.0, ok=True, note="text"),
        dict(phase="train", step=5, iteration=1, time=2.0, loss=1.0),
        dict(phase="generate", step=5, iteration=2, time=3.0, loss=9.0),
    ]
    lines = report.metric_lines(metrics)
    assert [(line.phase, line.key, line.x.tolist(), line.y.tolist()) for line in lines] == [
        ("train", "loss", [4, 5], [2, 1]),
        ("generate", "loss", [2], [9]),
    ]


@pytest.mark.parametrize(
    ("key", "title"),
    [
        ("kl_initial", "KL divergence"),
        ("policy/kl", "KL divergence"),
        ("weekly", None),
        ("term/kl", "Loss and its terms"),
        ("grad_norm/kl", "Gradient norms"),
        ("tokens_per_second", "Throughput"),
        ("loss_per_sample", "Loss and its terms"),
        ("score_per_sample", None),
        ("eos_rate", "Entropy, EOS rate, repetition"),
        ("length_p50", "Completion length"),
    ],
)
def test_each_metric_finds_its_section(key, title):
    assert next((topic.title for topic in report.TOPICS if topic.claims(key)), None) == title


def test_phase_seconds_come_from_the_record_or_from_the_clock():
    metrics = [
        dict(phase="generate", iteration=1, time=10.0, seconds=4.0),
        dict(phase="train", iteration=1, time=12.0),
        dict(phase="train", iteration=1, time=15.0),
        dict(phase="train", iteration=2, time=5.0),  # the clock went back: a restart on another machine
        dict(phase="generate", iteration=2, time=50.0, seconds=6.0),
        dict(phase="train", iteration=2, time=51.5),
    ]
    assert report.phase_seconds(metrics) == {"generate": {1: 4.0, 2: 6.0}, "train": {1: 5.0, 2: 1.5}}


def test_many_pairs_embed_a_bitmap_and_stay_small(workdir):
    rng = np.random.default_rng(0)
    jsonl(workdir / "pairs.jsonl", [pair(s, m) for s, m in rng.random((3000, 2)).tolist()])
    (workdir / "metrics.jsonl").unlink()
    path = report.build_report(workdir)
    assert path.stat().st_size < 500_000 and "data:image/png;base64" in path.read_text()


def test_a_long_run_of_samples_is_cut_with_a_count(workdir):
    texts = [dict(stage="start", prompt_id=i, prompt=f"prompt {i}", response="r", score=0.0) for i in range(205)]
    jsonl(workdir / "samples.jsonl", texts)
    text = Page(report.build_report(workdir)).text
    assert "prompt 199" in text and "prompt 200" not in text and "5 more prompts are in samples.jsonl" in text


def test_the_same_folder_gives_the_same_page(workdir):
    first = report.build_report(workdir).read_bytes()
    assert report.build_report(workdir).read_bytes() == first


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        report.build_report(tmp_path / "nowhere")
