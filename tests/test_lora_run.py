"""Whole runs with adapters: what is trained, saved, resumed and left behind."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import configure, length_oracle, values

from ssppo_jax.errors import ConfigError, Interrupted
from ssppo_jax.runs.metrics import read_metrics
from ssppo_jax.runtime import build_runtime
from ssppo_jax.training import train as train_module
from ssppo_jax.training.position import Position
from ssppo_jax.training.train import Trainer, train
from ssppo_jax.weights import hf
from ssppo_jax.weights.source import resolve

pytestmark = pytest.mark.usefixtures("own_cache")
RESULT = {"win_rate": 0.5, "low": 0.4, "high": 0.6, "prompts": 4}
LORA = {
    "lora__rank": 4,
    "lora__alpha": 8.0,
    "train__micro_batches": 1,
    "optimizer__learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "build_oracle", lambda config: length_oracle())
        result = train(configure(**LORA), folder)
    return folder, result, list(read_metrics(folder / "metrics.jsonl"))


def test_the_run_trains_and_sampler_and_trainer_agree(run):
    _, result, log = run
    assert max(v["sampler_gap/max"] for v in values(log, "score")) < 1e-5
    assert values(log, "score")[0]["kl_to_initial"] == pytest.approx(0, abs=1e-5)
    assert abs(values(log, "score")[-1]["kl_to_initial"]) > 1e-3 and 0 <= result["win_rate"] <= 1


def test_the_policy_left_behind_is_the_model_with_the_adapters_left_behind(run):
    folder, *_ = run
    arch = hf.read_arch(folder / "policy")
    policy = dict(hf.flatten(hf.load_params(folder / "policy", arch)))
    settings = json.loads((folder / "adapters/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(resolve("random:tiny"))
    start = hf.load_params(settings["base_model_name_or_path"], arch)
    assert (settings["r"], settings["lora_alpha"]) == (4, 8.0)
    moved = {path for path, leaf in hf.flatten(start) if not np.array_equal(leaf, policy[path])}
    assert moved == {
        path
        for path, _ in hf.flatten(start)
        if path.startswith("layers/") and path.endswith("kernel")
    }
    adapters = load_file(folder / "adapters/adapter_model.safetensors")
    a, b = (
        adapters[f"base_model.model.model.layers.1.self_attn.v_proj.lora_{x}.weight"] for x in "AB"
    )
    want = start["layers"]["attn"]["v"]["kernel"][1].reshape(arch.hidden_size, -1) + 2.0 * (b @ a).T
    np.testing.assert_allclose(
        policy["layers/attn/v/kernel"][1].reshape(want.shape), want, atol=1e-5
    )


def test_checkpoints_hold_adapters_alone_and_may_stand_for_the_whole_policy(run):
    folder, *_ = run
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    leaves = json.loads((newest / "meta.json").read_text())["leaves"]
    assert all(name.endswith(("lora_a", "lora_b", "count", "step")) for name in leaves)
    one, two = (
        hf.load_params(f, hf.read_arch(f)) for f in (resolve(str(newest)), folder / "policy")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, two)


def test_a_run_that_was_stopped_ends_like_one_that_was_not(run, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "build_oracle", lambda config: length_oracle())
    saves, inner = [], Trainer._save

    def stopping(self, state, at, offset):
        inner(self, state, at, offset)
        saves.append(at)
        if len(saves) == 1:
            raise Interrupted

    monkeypatch.setattr(Trainer, "_save", stopping)
    with pytest.raises(Interrupted):
        train(configure(**LORA), tmp_path)
    train(configure(**LORA), tmp_path)
    whole = run[0]
    for name in (
        "adapters/adapter_model.safetensors",
        "policy/model.safetensors",
        "pairs.jsonl",
        "result.json",
    ):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


def test_an_export_that_was_killed_halfway_is_repeated_whole(tmp_path, monkeypatch):
    """SIGKILL between adapters/ and policy/ once left a run that no start could finish."""
    config = configure(**LORA)
    runtime = build_runtime(config)
    ending = SimpleNamespace(
        config=config,
        runtime=runtime,
        workdir=tmp_path,
        checkpoints=SimpleNamespace(wait=lambda: None),
        saved=None,
        selection=SimpleNamespace(best=None),
        _policy=lambda params: params,
        account={},
    )
    params, result, at = runtime.load_params(), dict(RESULT), Position(1)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(hf, "save_params", killed)
        Trainer._finish(ending, params, result, at)
    assert [path.name for path in tmp_path.iterdir()] == ["adapters"]
    weights = tmp_path / "adapters" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"of another attempt")
    (tmp_path / ".policy.tmp-0123456789ab").mkdir()  # what SIGKILL leaves inside the export
    assert Trainer._finish(ending, params, result, at) == result
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters", "policy", "result.json"]
    assert weights.read_bytes() == whole


def test_targets_that_name_no_projection_are_refused_with_what_there_is():
    with pytest.raises(
        ConfigError, match=r"lora.targets='attn/qkv' is found in no projection .*layers/attn/q, "
    ):
        build_runtime(configure(**(LORA | {"lora__targets": "attn/qkv"})))
