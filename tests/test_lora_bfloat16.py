"""Adapters in bfloat16, trained by float32 masters."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import configure, length_oracle

from ssppo_jax.training import train as train_module
from ssppo_jax.training.train import Trainer, train
from ssppo_jax.weights import hf

pytestmark = pytest.mark.usefixtures("own_cache")
LORA = {
    "lora__rank": 4,
    "lora__alpha": 8.0,
    "train__micro_batches": 1,
    "optimizer__learning_rate": 0.01,
}


def test_bfloat16_adapters_train_by_float32_masters_that_outlive_the_iterations_optimizer(
    tmp_path, monkeypatch
):
    """A step of a fresh RMSProp is 10 rates, 1e-5, which bfloat16 adapters would round away; had
    the second iteration begun with the rounded ones, its masters would be 0 or 2e-5 further."""
    monkeypatch.setattr(train_module, "build_oracle", lambda config: length_oracle())
    half = {"model__param_dtype": "bfloat16", "optimizer__scope": "iteration"}
    small = {"optimizer__learning_rate": 1e-6, "optimizer__schedule": "constant"}
    one_step = {"train__prompts_per_iteration": 8, "eval__every": 0}
    states = []
    monkeypatch.setattr(
        Trainer, "_save", lambda self, state, at, offset: states.append(jax.device_get(state))
    )
    train(configure(**(LORA | half | small | one_step)), tmp_path)
    first, last = (dict(hf.flatten(state.opt_state.kept)) for state in states)
    assert {str(x.dtype) for x in last.values()} == {"float32"}
    moved = np.concatenate([np.ravel(np.abs(last[p] - first[p])) for p in last])
    assert np.mean(np.abs(moved - 1e-5) < 1e-6) > 0.9
    jax.tree.map(
        lambda m, p: np.testing.assert_array_equal(m.astype(p.dtype), p),
        states[-1].opt_state.kept,
        states[-1].params,
    )
    # policy/ has the dtype of its source (export.dtype), adapters/ that of training
    files = {"adapters/adapter_model": "bfloat16", "policy/model": "float32"}
    for name, dtype in files.items():
        found = load_file(tmp_path / f"{name}.safetensors").values()
        assert {str(x.dtype) for x in found} == {dtype}, name
