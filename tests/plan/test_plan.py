"""Plans on described devices: eight virtual CPUs stand for the chips of a slice, the compiler is
the CPU's."""

import dataclasses
import importlib.util
import json
import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from ssppo_jax import schema
from ssppo_jax.__main__ import main
from ssppo_jax.distributed import backend
from ssppo_jax.errors import ConfigError
from ssppo_jax.models import flops
from ssppo_jax.models.arch import tiny_arch
from ssppo_jax.models.hf_config import arch_to_hf
from ssppo_jax.plan import command as planner
from ssppo_jax.plan import compile as plan
from ssppo_jax.plan import iteration, topology
from ssppo_jax.plan import search as searching
from ssppo_jax.plan import steps as planned_steps
from ssppo_jax.plan.hlo import by_kind, collectives
from ssppo_jax.plan.table import describe
from ssppo_jax.runs.throughput import Chip

ARCH = tiny_arch(vocab_size=512, num_layers=3, num_kv_heads=4, tie_embeddings=False)
CHIP = Chip("fake", ("cpu",), 1e12, 2**30, 1e11, 1e10, 1e9)
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
    monkeypatch.setattr(plan, "chip_of", lambda kind: CHIP)


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


def test_layouts_are_those_that_can_be():
    machine = topology.Machine(jax.devices(), 8)
    tried = searching.training_settings(load(), ARCH, machine)
    assert {(v["mesh.replica"], v["mesh.fsdp"], v["mesh.tensor"]) for v in tried} == {
        (1, 8, 1),
        (1, 4, 2),
        (1, 2, 4),
    }  # 8 does not divide 4 heads
    assert {v["model.remat"] for v in tried} == {"none", "dots", "full"}
    apart = searching.training_settings(load(), ARCH, machine._replace(per_node=4))
    assert (2, 2, 2) in {(v["mesh.replica"], v["mesh.fsdp"], v["mesh.tensor"]) for v in apart}
    sampled = searching.sampling_settings(load(), ARCH, machine)
    assert [v["sampling.mesh.tensor"] for v in sampled] == [1, 2, 4]


class Priced:
    """Stand for the compiler: a step takes what is counted, and 1 s more where `slow` says so."""

    def __init__(self, plans, slow=lambda runtime, phase: False, too_large=lambda c: False):
        self.plans, self.slow, self.too_large, self.asked = plans, slow, too_large, []

    def __call__(self, runtime, planned, chip, per_node):
        own = (runtime.mesh.shape, runtime.config.model.remat)
        sampling = (runtime.sampling_mesh.shape, planned.phase == "relay" and runtime.mesh.shape)
        seen = own if planned.phase in searching.TRAINING else sampling
        self.asked.append(str((planned.phase, *seen)))
        needs = plan.counted(runtime, planned, chip)
        if self.slow(runtime, planned.phase):
            needs["network"] = 1.0 + max(needs.values())
        fits = not (planned.phase == "train" and self.too_large(runtime.config))
        example = self.plans.get(planned.phase, self.plans["generate"])
        return dataclasses.replace(example, phase=planned.phase, fits=fits, seconds=needs)


def searched(monkeypatch, compiler):
    monkeypatch.setattr(searching, "compiled", compiler)
    monkeypatch.setattr(searching, "known_chip", lambda devices: CHIP)
    monkeypatch.setattr("ssppo_jax.runtime.device_memory", lambda device: 1e6)
    machine = topology.Machine(jax.devices(), 8)
    training = searching.training_settings(load(), ARCH, machine)
    few = [v for v in training if v["train.micro_batches"] == 1 and v["mesh.fsdp"] > 2]
    monkeypatch.setattr(searching, "training_settings", lambda *_: few)

    def load_with(setting):
        return load(**{key: str(value) for key, value in setting.items()})

    return searching.search(load_with, ARCH, machine, prompts=64)


def test_a_search_compiles_until_no_bound_is_below_the_best(plans, monkeypatch):
    free = Priced(plans)
    (only,) = searched(monkeypatch, free)  # its bound is its time
    assert only.iteration.total == only.seconds > 0
    best = only.training
    dear = Priced(
        plans,
        slow=lambda runtime, phase: (
            phase == "train"
            and runtime.mesh.shape["fsdp"] == best["mesh.fsdp"]
            and runtime.mesh.shape["tensor"] == best["mesh.tensor"]
        ),
    )
    found = searched(monkeypatch, dear)
    assert found[0].training["mesh.fsdp"] != best["mesh.fsdp"]
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)
    assert len(dear.asked) == len(set(dear.asked))  # each step once
    large = Priced(plans, too_large=lambda c: c.model.remat != "full")
    assert searched(monkeypatch, large)[0].training["model.remat"] == "full"


@pytest.mark.parametrize("more", [("--search",), ("--phases=score",), ()], ids=str)
def test_the_command_prints_and_writes_what_it_found(more, plans, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(topology, "machine_of", lambda name: topology.Machine(jax.devices(), 8))
    monkeypatch.setattr(planner, "known_chip", lambda devices: CHIP)
    monkeypatch.setattr(
        planner, "plan", lambda *args, **_: [p for p in plans.values() if p.phase in args[3]]
    )
    setting = {"mesh.fsdp": 8, "model.remat": "none"}
    layout = iteration.Iteration(64, {"train": 1e-9}, 0.0, 3, 8, ("nothing",))
    tried = [searching.Tried(setting, {"sampling.batch_size": 0}, [plans["train"]], layout)]
    monkeypatch.setattr(planner, "search", lambda *_, **__: tried)
    (tmp_path / "m.json").write_text(json.dumps(arch_to_hf(ARCH)))
    argv = ["plan", "--config=configs/smoke.py", "--topology=v5e:2x4"]
    argv += [f"--model={tmp_path / 'm.json'}", "--prompts=64", "--price=2.5"]
    argv += [f"--config.{key}={value}" for key, value in SMALL.items()]
    assert main([*argv, *more, f"--output={tmp_path / 'out'}"]) == 0
    records = json.loads((tmp_path / "out/plan.json").read_text())
    out = capsys.readouterr().out
    assert records[0]["peak"] > 0 and "of 1.00 GiB at the peak, fits" in out
    if more == ("--phases=score",):
        assert len(records) == 1 and "an iteration" not in out
        assert not (tmp_path / "out/iteration.json").exists()
        return
    kept = json.loads((tmp_path / "out/iteration.json").read_text())
    assert kept["prompts"] == 64 and kept["cost"] == pytest.approx(2.5 * kept["chip_hours"])
    assert "an iteration of 64 prompts: at least" in out and "at 2.5 a chip-hour" in out
    assert out.count("assumed: ") == 1
    if more:
        assert "| the paper, 8 x H100, measured |" in out and "| as configured |" in out
        assert "recommended: --config.mesh.fsdp=8 --config.model.remat=none" in out
        assert kept["overrides"] == setting | {"sampling.batch_size": 0}
        assert records[-1]["overrides"] == kept["overrides"]


# ---- an iteration --------------------------------------------------------------------------------


def test_an_iteration_by_hand(plans):
    """64 prompts in batches of 16, 3 answers each, scored 8 rows at a time and for two policies."""
    many = {"oracle__name": "pairrm", "checkpoint__every_steps": "2", "train__iterations": "2"}
    config = load(**many, checkpoint__async_save="False")
    runtime = plan.described(config, ARCH, jax.devices())
    found = iteration.iteration_of(runtime, list(plans.values()), CHIP, hosts=2, prompts=64)
    slowest = {phase: max(p.seconds.values()) for phase, p in plans.items()}
    assert found.seconds["generate"] == pytest.approx(4 * slowest["generate"])
    assert found.seconds["score"] == pytest.approx(2 * 8 * slowest["score"])
    assert found.seconds["train"] == pytest.approx(4 * slowest["train"])
    assert found.seconds["relay"] == 0
    read = 8 + 2 * 6  # prompt and two answers
    token = 2 * (4 * 1024**2 + 2 * 1024 * 4096) + 4 * (read + 512) * 1024
    judged = 64 * 6 * read * 24 * token
    assert found.seconds["judge"] == pytest.approx(judged / (8 * CHIP.flops * 0.3))
    state = plans["train"].memory["parameters"] + plans["train"].memory["optimizer"]
    assert found.seconds["checkpoint"] == pytest.approx(2 * 8 * state / (2 * 2e9), rel=1e-3)
    assert found.total == pytest.approx(sum(found.seconds.values()))
    held = config.data.heldout * (2 * config.eval.final_num_samples + config.eval.num_samples)
    evaluations = held / 3 * found.seconds["generate"] / 64
    assert found.hours * 3600 == pytest.approx(2 * found.total + evaluations)
    assert found.chip_hours == 8 * found.hours
    behind = plan.described(load(**many), ARCH, jax.devices())
    hidden = iteration.iteration_of(behind, list(plans.values()), CHIP, hosts=2, prompts=64)
    waits = found.seconds["checkpoint"] - (found.total - found.seconds["checkpoint"])
    assert hidden.seconds["checkpoint"] == pytest.approx(max(waits, 0.0))
    assert "in the background" in str(hidden.notes)
    assert any("30% of the peak" in note for note in found.notes)
    assert "20,000" not in str(found.notes)


def test_an_iteration_without_a_portion_takes_the_papers_and_says_so(plans):
    runtime = plan.described(load(train__prompts_per_iteration="0"), ARCH, jax.devices())
    found = iteration.iteration_of(runtime, list(plans.values()), CHIP, hosts=1)
    assert found.prompts == 20_000 and "20,000 prompts" in str(found.notes)
    large = [dataclasses.replace(p, fits=p.phase != "train") for p in plans.values()]
    assert iteration.iteration_of(runtime, large, CHIP, hosts=1) is None
    assert iteration.iteration_of(runtime, large[:2], CHIP, hosts=1) is None
    relay = dataclasses.replace(plans["train"], phase="relay", fits=False)
    assert iteration.iteration_of(runtime, [*plans.values(), relay], CHIP, hosts=1) is None


def test_of_given_responses_nothing_is_sampled_and_evaluations_have_no_opponent(plans):
    def found(**more):
        runtime = plan.described(load(**more), ARCH, jax.devices())
        return iteration.iteration_of(runtime, list(plans.values()), CHIP, hosts=1, prompts=64)

    given = found(data__source="answered", loss="dpo")
    assert given.seconds["generate"] == given.seconds["judge"] == given.evaluations == 0
    assert given.seconds["train"] > 0 and "responses are given" in str(given.notes)
    versus = found(loss="nash_md", sampling__num_samples="2")
    plain = versus.seconds["generate"] / 3 / 64
    config = load(loss="nash_md", sampling__num_samples="2")
    held = config.data.heldout * (2 * config.eval.final_num_samples + config.eval.num_samples)
    assert versus.evaluations == pytest.approx(plain * held)


def test_pairrm_reads_what_its_config_file_says():
    """25 TFLOP a prompt at most (configs/llama3_8b_s_sppo.py), 18.6 of them matrices."""
    work = iteration.PAIRRM.work(20, 512 + 2 * 512)
    matrices = 20 * 1536 * 2 * 302e6
    assert matrices < work < 25.5e12 and matrices == pytest.approx(18.6e12, rel=0.01)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--topology=8x8"], "--topology=8x8: give a chip (a100, h100, h200, b200, v4, v5e,"),
        (["--topology=h100:8"], "pip install --no-deps jax-cuda12-plugin=="),
        (["--topology=v9z:2x2"], "--topology=v9z:2x2: give"),
        (["--topology=v5e:4x4"], "pip install 'ssppo_jax[plan]'"),
        (["--topology=v5e:4x4", "--phases=train,test"], "of relay, generate, score, train"),
        (["--topology=v5e:4x4x2x2"], "a slice of v5e has 2 dimensions"),
        (["--topology=v5p:4x4x4x2"], "pip install 'ssppo_jax[plan]'"),
        (["--topology=v5e:4x4", "--sweep"], "plan --sweep is now --search"),
        (["--topology=v5e:4x4", "--price=cheap"], "'cheap' must be a positive number"),
        (["--topology=v5e:4x4", "--prompts=0"], "'0' must be a whole number from 1"),
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
    assert plan.read_model("random:tiny").num_layers == 2
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
    monkeypatch.setattr(backend, "_has_chip", lambda: chip)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name == "libtpu" and libtpu else None
    )
    backend.leave_out_tpu()
    assert os.environ.get("JAX_PLATFORMS") == want


def test_collectives_are_those_of_the_compiled_step(plans):
    config = load()
    runtime = plan.Runtime(config, None, *mesh_and_decoder(config), None, (0,))
    planned = planned_steps.plan_step(runtime, "score")
    text = planned.step.lower(*planned.arguments).compile().as_text()
    assert plans["score"].collectives == by_kind(collectives(text)) != {}


def test_what_fully_sharded_training_sends_is_its_closed_form():
    """Each layer's matrices are gathered forwards and backwards, the head once more, since its
    logits are computed again; each gradient is reduced and scattered once. This compiler writes
    that as an all-reduce and a cut, which passes the array twice."""
    config = load(mesh__fsdp="8", mesh__tensor="1", train__micro_batches="1")
    runtime = plan.described(config, ARCH, jax.devices())
    planned = planned_steps.plan_step(runtime, "train")
    fast = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    sent = by_kind(collectives(planned.step.lower(*planned.arguments).compile(fast).as_text()))
    params = runtime.abstract_params
    layers = sum(x.size * 4 for x in jax.tree.leaves(params["layers"]) if x.ndim > 2)
    head = params["head"]["kernel"].size * 4
    assert sent["all-gather"] == pytest.approx(2 * layers + 3 * head, rel=0.01)
    reduced = sent["all-reduce"] / 2 + sent.get("reduce-scatter", 0.0)
    assert reduced == pytest.approx(layers + head, rel=0.03)


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


def test_cudnn_that_is_not_installed_is_named_with_what_to_type(monkeypatch):
    """JAX says "cuDNN not found" while it traces, and the plan showed its traceback."""

    def lower(*_):
        raise RuntimeError(said)

    monkeypatch.setattr(plan, "memory_of", lambda *_: {})
    step = SimpleNamespace(step=SimpleNamespace(lower=lower), arguments=(), phase="train")
    said = "cuDNN not found."
    with pytest.raises(ConfigError, match=r"pip install nvidia-cudnn-cu12, or .*attention=einsum"):
        plan.compiled(None, step, CHIP, 8)
    said = "something else"
    with pytest.raises(RuntimeError, match="something else"):
        plan.compiled(None, step, CHIP, 8)
