"""Plans on described devices: eight virtual CPUs stand for the chips of a slice, the compiler is
the CPU's."""

import dataclasses
import importlib.util
import json
import os

import jax
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from ssppo_jax import __main__, schema
from ssppo_jax.__main__ import main
from ssppo_jax.errors import ConfigError
from ssppo_jax.models import flops
from ssppo_jax.models.arch import tiny_arch
from ssppo_jax.models.hf_config import arch_to_hf
from ssppo_jax.plan import command as planner
from ssppo_jax.plan import compile as plan
from ssppo_jax.plan import steps as planned_steps
from ssppo_jax.plan import topology
from ssppo_jax.plan.hlo import by_kind, collectives
from ssppo_jax.plan.table import describe, ranking
from ssppo_jax.runs.throughput import Chip

ARCH = tiny_arch(vocab_size=512, num_layers=3, num_kv_heads=4, tie_embeddings=False)
CHIP = Chip("fake", ("cpu",), 1e12, 2**30, 1e11, 1e10)
MISSING = ("libtpu", "jax_cuda12_plugin")
SMALL = {
    "data.prompt_buckets": "(8,)",
    "data.max_prompt_length": "8",
    "sampling.max_new_tokens": "6",
    "sampling.num_samples": "3",
    "sampling.batch_size": "16",
    "train.batch_size": "16",
    "train.micro_batches": "2",
    "model.remat": "full",
    "mesh.fsdp": "4",
    "mesh.tensor": "2",
}


@pytest.fixture(autouse=True)
def known_chip(monkeypatch):
    for module in (plan, planner):
        monkeypatch.setattr(module, "chip_of", lambda kind: CHIP)


def load(**overrides):
    return schema.load(
        "configs/smoke.py", SMALL | {k.replace("__", "."): v for k, v in overrides.items()}, 8
    )


@pytest.fixture(scope="module")
def plans():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "chip_of", lambda kind: CHIP)
        return {p.phase: p for p in plan.plan(load(), ARCH, jax.devices())}


def test_every_phase_is_compiled_and_fits(plans):
    assert list(plans) == ["generate", "score", "train"]
    for p in plans.values():
        assert p.fits and 0 < p.peak < CHIP.memory and p.refusal == ""
        assert p.seconds["compute"] == pytest.approx(p.flops / CHIP.flops)
        assert (
            p.seconds["network"] == pytest.approx(sum(p.collectives.values()) / CHIP.link)
            and p.seconds["network"]
        )
        assert p.binds == max(p.seconds, key=p.seconds.get)


def test_operations_and_tokens_are_those_of_the_configured_sizes(plans):
    prompt, own = np.full(16, 8), np.full((16, 2), 6)
    useful = flops.train_step(ARCH, prompt, own)
    assert plans["train"].flops == pytest.approx(
        (useful + flops.forward(ARCH, prompt, own)) / 8
    )  # remat: once more
    slowest = max(plans["train"].seconds.values())
    assert plans["train"].tokens_per_second == pytest.approx(16 * 2 * 6 / slowest)
    assert plans["train"].utilisation == pytest.approx(useful / 8 / CHIP.flops / slowest)
    assert plans["score"].flops == pytest.approx(flops.forward(ARCH, prompt[:8], own[:8]) / 8)
    assert plans["generate"].flops == pytest.approx(
        flops.forward(ARCH, prompt, np.full((16, 3), 6)) / 8
    )


def test_parameters_and_state_are_counted_as_they_are_cut(plans):
    held = plans["train"].memory
    whole = sum(int(np.prod(s.shape)) * 4 for s in jax.tree.leaves(jax.eval_shape(shapes)))
    assert whole / 8 < held["parameters"] < whole / 8 * 1.2  # norms are not cut
    assert held["gradients"] == held["parameters"]
    assert held["one layer, gathered"] == pytest.approx(held_layer(), rel=0.05)
    assert list(held.values()) == sorted(held.values(), reverse=True) and set(held) <= set(
        plan.KNOBS
    )


def shapes():
    from ssppo_jax.models.decoder import Decoder, init_params

    return init_params(Decoder(ARCH), jax.random.key(0))


def held_layer():
    return flops.layer_parameters(ARCH) * 4 / 2  # cut over tensor=2 alone


def test_remat_says_what_is_done_again():
    prompt, own = np.full(4, 8), np.full((4, 2), 6)
    logits = flops.head(ARCH, float(own.sum()))
    looked = flops.attention(ARCH, np.zeros(4), prompt) + flops.attention(
        ARCH, prompt[:, None], own
    )
    again = {
        remat: planned_steps.recomputed(ARCH, remat, prompt, own)
        for remat in ("none", "dots", "full")
    }
    assert again == {
        "none": logits,
        "dots": logits + looked,
        "full": flops.forward(ARCH, prompt, own),
    }


def test_adapters_have_the_only_optimizer_state():
    full, lora = (
        plan.plan(load(lora__rank=r), ARCH, jax.devices(), ("train",))[0] for r in ("0", "2")
    )
    assert lora.memory["optimizer"] < full.memory["optimizer"] / 5 and lora.peak < full.peak


def test_what_does_not_fit_names_the_largest_part_and_what_to_change(monkeypatch):
    class Refusing:
        def lower(self, *_):
            raise JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory on HBM, required 25.29G exceeds 15.75G."
            )

    def step(runtime, phase):
        return planned_steps.plan_step(runtime, phase)._replace(step=Refusing())

    monkeypatch.setattr(plan, "plan_step", step)
    (found,) = plan.plan(load(model__logprob_chunk="512"), ARCH, jax.devices(), ("train",))
    largest = next(iter(found.memory))
    assert not found.fits and found.peak is None
    assert (
        "25.29G" in found.refusal
        and largest in found.refusal
        and plan.KNOBS[largest] in found.refusal
    )
    assert "does NOT fit" in describe(found, CHIP)


def test_what_is_above_the_chips_memory_does_not_fit(monkeypatch):
    monkeypatch.setattr(plan, "chip_of", lambda kind: dataclasses.replace(CHIP, memory=1000.0))
    (found,) = plan.plan(load(), ARCH, jax.devices(), ("score",))
    assert not found.fits and "does NOT fit" in describe(found, CHIP)


def test_variants_are_those_that_can_be_and_the_best_that_fits_comes_first(plans):
    tried = plan.variants(load(), ARCH, 8)
    assert {(v["mesh.fsdp"], v["mesh.tensor"]) for v in tried} == {
        (8, 1),
        (4, 2),
        (2, 4),
    }  # 8 does not divide 4 heads
    assert {v["model.remat"] for v in tried} == {"none", "dots", "full"}
    fast, slow = (dataclasses.replace(plans["train"], tokens_per_second=x) for x in (2.0, 1.0))
    large, larger = (
        dataclasses.replace(plans["train"], fits=False, peak=x, tokens_per_second=9.0)
        for x in (5, 6)
    )
    ranked = plan.rank([({"a": i}, p) for i, p in enumerate((larger, slow, large, fast))])
    assert [setting["a"] for setting, _ in ranked] == [3, 1, 2, 0]
    assert ranking(ranked).count("\n") == 5


@pytest.mark.parametrize("sweep", [False, True])
def test_the_command_prints_and_writes_what_it_found(sweep, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(topology, "machine_of", lambda name: topology.Machine(jax.devices(), 8))
    monkeypatch.setattr(
        planner, "variants", lambda *_: [{"model.remat": "none"}, {"model.remat": "full"}]
    )
    (tmp_path / "m.json").write_text(json.dumps(arch_to_hf(ARCH)))
    argv = [
        "plan",
        "--config=configs/smoke.py",
        "--topology=v5e:2x4",
        f"--model={tmp_path / 'm.json'}",
    ]
    argv += [f"--config.{key}={value}" for key, value in SMALL.items()] + [
        f"--output={tmp_path / 'out'}"
    ]
    assert main([*argv, *(["--sweep"] if sweep else ["--phases=score"])]) == 0
    records = json.loads((tmp_path / "out/plan.json").read_text())
    assert [r["phase"] for r in records] == (["train", "train"] if sweep else ["score"])
    assert records[0]["peak"] > 0 and ("overrides" in records[0]) == sweep
    assert (
        "| model.remat |" if sweep else "of 1.00 GiB at the peak, fits"
    ) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--topology=8x8"], "--topology=8x8: give a chip (a100, h100, h200, b200, v4, v5e,"),
        (["--topology=h100:8"], "pip install --no-deps jax-cuda12-plugin=="),
        (["--topology=v9z:2x2"], "--topology=v9z:2x2: give"),
        (["--topology=v5e:4x4"], "pip install 'ssppo_jax[plan]'"),
        (["--topology=v5e:4x4", "--phases=train,test"], "of relay, generate, score, train"),
    ],
)
def test_mistakes_are_said_before_anything_is_compiled(argv, message, monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in MISSING else found(name, *a)
    )
    assert main(["plan", "--config=configs/smoke.py", *argv]) == 78
    assert message in capsys.readouterr().err


def test_a_model_without_a_config_says_what_to_type(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="llama3_70b, llama3_8b"):
        plan.read_model("nobody/no-such-model")
    for name, parameters in (("llama3_8b", 8.03e9), ("llama3_70b", 70.55e9)):
        arch = plan.read_model(name)
        count = (
            arch.num_layers * flops.layer_parameters(arch) + 2 * arch.vocab_size * arch.hidden_size
        )
        assert count == pytest.approx(parameters, rel=1e-3)


@pytest.mark.parametrize(
    ("libtpu", "chip", "said", "want"),
    [
        (True, False, None, "cpu"),
        (True, True, None, None),
        (False, False, None, None),
        (True, False, "cuda", "cuda"),
    ],
)
def test_the_tpu_compiler_alone_does_not_make_a_run_look_for_a_tpu(
    libtpu, chip, said, want, monkeypatch
):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if said:
        monkeypatch.setenv("JAX_PLATFORMS", said)
    monkeypatch.setattr(__main__, "_has_chip", lambda: chip)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name == "libtpu" and libtpu else None
    )
    __main__._leave_out_tpu()
    assert os.environ.get("JAX_PLATFORMS") == want


def test_collectives_are_those_of_the_compiled_step(plans):
    config = load()
    runtime = plan.Runtime(config, None, *mesh_and_decoder(config), None, (0,))
    planned = planned_steps.plan_step(runtime, "score")
    text = planned.step.lower(*planned.arguments).compile().as_text()
    assert plans["score"].collectives == by_kind(collectives(text)) != {}


@pytest.mark.parametrize(
    ("rounding", "each"), [("master", 4 + 4), ("stochastic", 2), ("nearest", 2)]
)
def test_the_optimizer_of_bfloat16_parameters_is_counted_by_how_they_are_rounded(rounding, each):
    """Bytes of a parameter: RMSProp's mean square in its dtype, and the float32 parameter."""
    half = {"model__param_dtype": "bfloat16", "optimizer__rounding": rounding}
    config = load(**half)
    runtime = plan.Runtime(config, None, *mesh_and_decoder(config), None, (0,))
    held = plan.memory_of(runtime, planned_steps.plan_step(runtime, "train"))
    assert held["optimizer"] / held["parameters"] == pytest.approx(each / 2, rel=1e-3)


def mesh_and_decoder(config):
    mesh = plan.make_mesh((1, 4, 2))
    return mesh, ARCH, plan.make_decoder(config, ARCH, mesh)
