"""The loop, run whole on a tiny model over eight virtual devices."""

import contextlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_runs import configure, length_oracle, values

from ssppo_jax.data import EncodedPrompt
from ssppo_jax.errors import ConfigError, GateError, UserError
from ssppo_jax.evaluate import compare
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.runs.metrics import read_metrics
from ssppo_jax.runs.report import build
from ssppo_jax.training import train as train_module
from ssppo_jax.training.position import Position
from ssppo_jax.training.rollouts import Rollouts
from ssppo_jax.training.train import train
from ssppo_jax.types import Prompt, Verdict
from ssppo_jax.weights.source import resolve

TRACKER = f"{Path(__file__).with_name('tracked.py')}:Lines"

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two iterations of two steps; the batch of each step is one micro-batch, so its metrics are
    exact."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "build_oracle", lambda config: length_oracle())
        patch.setattr(build, "build_report", lambda folder: folder / "report.html")  # seconds
        config = configure(
            train__micro_batches=1, loss__repulsion_weight=0.5, tracking__report_to=TRACKER
        )
        result = train(config, folder, profile=True)
    return folder, result, list(read_metrics(folder / "metrics.jsonl"))


def test_a_run_leaves_what_the_readme_promises(run):
    folder, result, log = run
    assert json.loads((folder / "result.json").read_text()) == result
    for name in (
        "config.json",
        "pairs.jsonl",
        "samples.jsonl",
        "policy/model.safetensors",
        "policy/tokenizer.json",
    ):
        assert (folder / name).is_file(), name
    assert [
        len(values(log, phase)) for phase in ("generate", "judge", "score", "train", "evaluate")
    ] == [2, 2, 2, 4, 2]
    assert 0 <= result["low"] <= result["win_rate"] <= result["high"] <= 1


def test_a_tracker_is_told_what_the_log_holds_the_held_out_responses_and_the_end(run):
    folder, _, log = run
    shown = [json.loads(line) for line in (folder / "shown.jsonl").read_text().splitlines()]
    numbers = [row[1:] for row in shown if row[0] == "log"]
    logged = [
        [
            record["step"],
            {
                f"{record['phase']}/{name}": x
                for name, x in (record["values"] | record["wall"]).items()
                if name != "time"
            },
        ]
        for record in log
    ]
    assert numbers == logged
    tables = [row[1:] for row in shown if row[0] == "table"]
    assert tables == [[f"samples/iteration_{i}", 8] for i in range(3)]
    assert shown[-2:] == [["attach", "report.html"], ["finish", "finished"]]


def test_each_iteration_says_how_fast_it_was_what_it_padded_and_what_it_held(run):
    folder, _, log = run
    records = [record for record in log if record["phase"] == "iteration"]
    assert len(records) == 2
    for record in records:
        assert 0 < record["values"]["padding_share"] < 1
        assert record["wall"]["host_peak_gib"] > 0.1
        assert record["wall"]["iteration_seconds"] > record["wall"]["train_seconds"]
        assert record["wall"]["checkpoint_seconds"] < record["wall"]["iteration_seconds"]
        tokens, seconds = (
            record["wall"][f"train_{what}"] for what in ("tokens_per_second", "seconds")
        )
        assert 0 < tokens * seconds < 16 * (256 + 2 * 6)
    assert len(list((folder / "profile").rglob("*.xplane.pb"))) == 1  # of the second iteration


def test_where_the_initial_policy_waits_and_who_writes_checkpoints_changes_no_number(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(train_module, "build_oracle", lambda config: length_oracle())
    config = configure(
        train__micro_batches=1,
        loss__repulsion_weight=0.5,
        train__reference_storage="disk",
        checkpoint__async_save="false",
    )
    assert train(config, tmp_path) == run[1]
    other = read_metrics(tmp_path / "metrics.jsonl")
    for one, two in zip(run[2], other, strict=True):
        assert one["values"] == two["values"]
    assert values(run[2], "score")[1]["kl_to_initial"] != 0


def test_no_array_goes_between_host_and_device_unasked_while_training(tmp_path, monkeypatch):
    def careless(mesh, batch, parts):
        return jax.tree.map(lambda x: x[None] * np.float32(1), jax.device_put(batch))

    monkeypatch.setattr(train_module, "build_oracle", lambda config: length_oracle())
    monkeypatch.setattr(train_module, "put_micro_batches", careless)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(configure(train__micro_batches=1), tmp_path)


def test_no_number_is_read_off_a_device_unasked_while_training(tmp_path, monkeypatch):
    """JAX forbids it on GPUs and TPUs; on the CPU its guard lets every read pass."""
    rules, guard, kind = [], jax.transfer_guard, type(jax.numpy.zeros(()))

    @contextlib.contextmanager
    def noted(rule):
        rules.append(rule)
        with guard(rule):
            yield
        rules.pop()

    def read(name):
        own = getattr(kind, name)

        def forbidden(array, *args):
            assert rules[-1:] != ["disallow"], f"{name} of an array"
            return own(array, *args)

        return forbidden

    monkeypatch.setattr(train_module, "build_oracle", lambda config: length_oracle())
    monkeypatch.setattr(jax, "transfer_guard", noted)
    for name in ("__int__", "__float__", "__bool__", "__index__", "item", "tolist"):
        monkeypatch.setattr(kind, name, read(name))
    train(configure(train__iterations=1, checkpoint__every_steps=1), tmp_path)
    assert (tmp_path / "checkpoints/step_00000001").is_dir()


def test_the_first_step_of_an_iteration_is_taken_at_pi_t(run):
    """r = 0 there: no KL to pi_t, every ratio 1, and the reference was refreshed in the second
    iteration too."""
    first = values(run[2], "train")[::2]
    for step in first:
        np.testing.assert_allclose([step["ratio/min"], step["ratio/max"]], 1, atol=2e-5)
        np.testing.assert_allclose(step["kl/old_k3"], 0, atol=1e-8)
    assert abs(first[1]["kl/init_k1"]) > 1e-4  # the policy did move between them


def test_loss_at_pi_t_is_the_closed_form(run):
    """Identity: at theta_t, L = mean over pairs of 1/2 sum_y ((P^c(y) - 1/2)/beta)^2 + lambda
    cos(h_w, h_l)."""
    folder, _, log = run
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    pairs = [p for p in pairs if p["iteration"] == 0]
    order = np.random.default_rng([0, 0, 0]).permutation(len(pairs))[:8]
    target = np.array([pairs[i]["target"] for i in order])
    step = values(log, "train")[0]
    expected = np.mean(((target - 0.5) / 0.05) ** 2)
    assert expected > 0.1
    np.testing.assert_allclose(step["term/regression"], expected, rtol=1e-5)
    np.testing.assert_allclose(step["term/repulsion"], 0.5 * step["similarity/hidden"], rtol=1e-5)
    np.testing.assert_allclose(
        step["loss"], step["term/regression"] + step["term/repulsion"], rtol=1e-6
    )


def test_sampler_and_trainer_agree_to_1e_5_on_the_mesh(run):
    assert max(score["sampler_gap/max"] for score in values(run[2], "score")) < 1e-5


def test_the_two_terms_have_gradient_norms_in_each_iterations_first_step(run):
    steps = values(run[2], "train")
    assert [{"grad_norm/regression", "grad_norm/repulsion"} <= step.keys() for step in steps] == [
        True,
        False,
    ] * 2
    assert steps[0]["grad_norm/repulsion"] > 0


def test_a_finished_run_gives_its_result_and_another_config_is_refused(run):
    folder, result, _ = run
    before = (folder / "metrics.jsonl").read_bytes()
    config = configure(train__micro_batches=1, loss__repulsion_weight=0.5)
    assert train(config, folder) == result
    assert (folder / "metrics.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match=r"loss\.beta: the run has 0\.05, given 0\.1"):
        train(configure(train__micro_batches=1, loss__repulsion_weight=0.5, loss__beta=0.1), folder)


def test_a_checkpoint_may_stand_wherever_a_model_is_asked_for(run):
    """Its newest one holds the policy that was exported, tokenizer and all; an older one holds
    another."""
    steps = sorted((run[0] / "checkpoints").glob("step_*"))
    newest, older = (resolve(str(step)) for step in (steps[-1], steps[-2]))
    exported = (run[0] / "policy" / "model.safetensors").read_bytes()
    assert (
        (newest / "model.safetensors").read_bytes()
        == exported
        != (older / "model.safetensors").read_bytes()
    )
    assert (newest / "tokenizer.json").read_bytes() == (
        run[0] / "policy" / "tokenizer.json"
    ).read_bytes()


@pytest.mark.parametrize(
    ("lag", "positions", "kept"),
    [
        (0, [(3, 0), (1, 2), (0, 0)], [1, 3]),
        (1, [(3, 0), (1, 0)], [1, 3]),  # the policy that sampled 1 is gone
        (1, [(3, 0), (0, 2)], [0, 1, 3]),  # in the midst of 0 its policy, which sampled 1, is too
    ],
)
def test_a_rollout_that_a_kept_checkpoint_needs_is_not_deleted(tmp_path, lag, positions, kept):
    """If the newest checkpoint is damaged, a resume from the one before needs its rollout."""
    folder = tmp_path / "rollouts"
    folder.mkdir()
    for n in range(4):
        (folder / f"iteration_{n:05d}.npz").touch()
    metas = [{"position": {"iteration": i, "step_in_iteration": s}} for i, s in positions]
    checkpoints = SimpleNamespace(metas=lambda: metas, pending=True)
    rollouts = Rollouts(configure(train__rollout_lag=str(lag)), tmp_path, "", checkpoints)
    rollouts.drop(Position(3))
    assert len(list(folder.iterdir())) == 4  # the checkpoint before the pending one may be needed
    checkpoints.pending = False
    rollouts.drop(Position(3))
    assert sorted(path.name for path in folder.iterdir()) == [
        f"iteration_{n:05d}.npz" for n in kept
    ]


def test_a_damaged_checkpoint_is_no_model(run, tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "step_00000004"
    shutil.copytree(sorted((run[0] / "checkpoints").glob("step_*"))[-1], folder)
    shutil.copy(run[0] / "config.json", tmp_path / "run")
    meta = folder / "meta.json"
    meta.write_bytes(meta.read_bytes().replace(b'"step": 4', b'"step": 5'))
    with pytest.raises(UserError, match="damaged"):
        resolve(str(folder), tmp_path / "cache")


def test_an_evaluation_the_oracle_could_not_judge_is_no_result():
    encoded = [
        EncodedPrompt(Prompt(n, ({"role": "user", "content": n},)), np.ones(1), np.uint32(0))
        for n in "ab"
    ]
    one, two = [["long text"], ["long text"]], [["short"], ["short"]]
    assert compare(configure(), length_oracle(), encoded, one, two).win_rate.mean > 0.5
    with pytest.raises(GateError, match="1 of 2 prompts"):
        compare(configure(), length_oracle(lambda p: p.id == "a"), encoded, one, two)


def test_an_evaluation_asks_about_each_response_under_its_own_prompt():
    encoded = [
        EncodedPrompt(Prompt(n, ({"role": "user", "content": n},)), np.ones(1), np.uint32(0))
        for n in "ab"
    ]

    def own_name(prompts, responses):
        reward = [
            [float(text == p.id) for text in group]
            for p, group in zip(prompts, responses, strict=True)
        ]
        return Verdict(None, np.array(reward), (None,) * len(prompts))

    found = compare(configure(), Oracle(own_name), encoded, [["a"], ["b"]], [["b"], ["a"]])
    assert (
        found.rewards["reward"].candidate.mean == 1 and found.rewards["reward"].baseline.mean == 0
    )
