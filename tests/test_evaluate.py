"""Evaluations ask what the run held out, each model in its own words, and end on a model that gives
no numbers."""

import json
import shutil
from datetime import datetime

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import MESH, SMALL, SMOKE, configure
from tiny import random_params
from transformers.utils import chat_template_utils

from ssppo_jax.__main__ import main
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.data.prepare import prepare_heldout
from ssppo_jax.data.sources import quickstart
from ssppo_jax.errors import ConfigError, GateError
from ssppo_jax.evaluate import HeldOut, compare, evaluate
from ssppo_jax.files import to_json
from ssppo_jax.inference import generate as generate_module
from ssppo_jax.inference.generate import respond
from ssppo_jax.models.arch import LinearScaling, tiny_arch
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.rollout.sample import Responses, check_finite
from ssppo_jax.runtime import build_runtime
from ssppo_jax.sampling.choose import SamplingParams, choose
from ssppo_jax.training.train import train
from ssppo_jax.types import Prompt, Samples, Verdict
from ssppo_jax.weights import hf, tiny
from ssppo_jax.weights.checkpoint import Checkpoints
from ssppo_jax.weights.source import resolve

pytestmark = pytest.mark.usefixtures("own_cache")
ONE = {  # small, and of one sample
    "train__micro_batches": 1,
    "eval__num_samples": 1,
    "eval__final_num_samples": 1,
    "sampling__max_new_tokens": 2,
}


def interrupt(*args, **how):
    raise KeyboardInterrupt


def began(config, folder):
    """Begin a run and leave it before anything is compiled; its policy is the initial model."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "latest", interrupt)
        train(config, folder)
    if not (folder / "policy").exists():
        shutil.copytree(resolve(config.model.source), folder / "policy")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, own_cache):
    return began(configure(**ONE), tmp_path_factory.mktemp("run"))


@pytest.fixture
def unsampled(monkeypatch):
    """Put a text in place of every sample, and keep who was to be sampled."""
    sides = {}

    def sample(self, params, *, num_samples, baseline, **how):
        sides["baseline" if baseline else "candidate"] = self
        return Responses(None, [["text"] * num_samples for _ in self.encoded], {}, {})

    monkeypatch.setattr(HeldOut, "sample", sample)
    return sides


def asked(output):
    rows = (output / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    return {json.loads(row)["prompt_id"] for row in rows if row}


def write_model(folder, template=tiny.CHAT_TEMPLATE, damage=1.0, **changes):
    """Write a random model as a folder of files, with weights times `damage`."""
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = template
    arch = tiny_arch(vocab_size=len(tokenizer), **changes)
    tokenizer.save_pretrained(folder / "tokenizer")
    params = jax.tree.map(lambda x: x * np.float32(damage), random_params(arch))
    return hf.save_params(params, arch, folder / "model", tokenizer_from=folder / "tokenizer")


# ---- what a run held out


def test_a_run_says_what_it_held_out_and_an_evaluation_with_another_seed_asks_that(
    run, tmp_path, unsampled
):
    split = json.loads((run / "split.json").read_text())
    assert len(split["heldout"]) == 4 and len(split["trained"]) > 8
    assert not set(split["heldout"].values()) & set(split["trained"])
    own, tiny_one = configure(seed=1, **ONE), "random:tiny"
    evaluate(own, candidate=str(run / "policy"), baseline=tiny_one, output=tmp_path / "a")
    assert asked(tmp_path / "a") == set(split["heldout"])
    # Without the run, that seed holds out others: it would have asked what was trained on.
    evaluate(own, candidate=tiny_one, baseline=tiny_one, output=tmp_path / "b")
    assert asked(tmp_path / "b").isdisjoint(split["heldout"])


def test_responses_are_written_to_what_the_models_run_held_out(run, monkeypatch):
    monkeypatch.setattr(generate_module, "sample_prompts", interrupt)
    found = []
    monkeypatch.setattr(
        generate_module, "prepare_heldout", lambda *a, **how: found.append(prepare(*a, **how))
    )
    prepare = prepare_heldout
    with pytest.raises(TypeError):
        respond(configure(seed=1, model__source=run / "policy", **ONE), None)
    ((encoded,), _) = found[0]
    split = json.loads((run / "split.json").read_text())
    assert {e.prompt.id for e in encoded} == set(split["heldout"])


def test_a_prompt_that_either_side_was_trained_on_is_left_out_and_counted(
    run, tmp_path, caplog, unsampled
):
    more = configure(seed=1, **(ONE | {"data__heldout": 8}))
    result = evaluate(more, candidate="random:tiny", baseline=str(run / "policy"), output=tmp_path)
    split = json.loads((run / "split.json").read_text())
    assert asked(tmp_path) == set(split["heldout"])
    assert len(result["prompts"]["heldout_trained_before"]) == 4
    assert "left out 4 of 8 prompts that a model was trained on" in caplog.text


def test_a_model_trained_on_everything_cannot_be_evaluated(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Count to 3."}\n{"prompt": "Name a tree."}\n')
    source = {"data__source__name": "jsonl", "data__source__path": file, "data__heldout": 1}
    all_at_once = {"train__iterations": 1, "train__prompts_per_iteration": 0}
    own = configure(**(ONE | source | all_at_once))
    run = began(own, tmp_path / "run")
    split = json.loads((run / "split.json").read_text())
    everything = [*split["trained"], *split["heldout"].values()]
    (run / "split.json").write_text(json.dumps(split | {"trained": everything}))
    with pytest.raises(ConfigError, match="holds no prompt that these models were not trained on"):
        evaluate(own, candidate=str(run / "policy"), baseline="random:tiny", output=None)


def test_a_run_that_continues_another_ones_policy_holds_out_what_that_one_did(run, tmp_path):
    own = configure(model__source=run / "policy", seed=1, **ONE)
    second = began(own, tmp_path / "second")
    first, again = (json.loads((x / "split.json").read_text()) for x in (run, second))
    assert again["heldout"] == first["heldout"] and again["trained"] == first["trained"]


def test_an_oracle_asked_twice_with_other_settings_has_both_views_of_the_reference(
    tmp_path, unsampled
):
    """The second one stood in the place of the config's own."""
    file = tmp_path / "reference.jsonl"
    rows = [{"prompt": prompt.text, "output": "text"} for prompt in quickstart()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = {"oracle__name": "length", "eval__oracles": "length", "eval__reference_outputs": file}
    result = evaluate(
        configure(**asked, **ONE), candidate="random:tiny", baseline="random:tiny", output=None
    )
    assert set(result["reference"]) == {"length", "length of the config"}


# ---- each side in its own words


def test_each_side_is_read_by_its_own_architecture_tokenizer_and_template(tmp_path, unsampled):
    plain = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    other = write_model(tmp_path, plain, num_layers=1, eos_ids=(0,), model_type="qwen2")
    own = configure(model__source="/nowhere", **ONE)
    evaluate(own, candidate=str(other), baseline="random:tiny", output=None)
    one, two = unsampled["candidate"], unsampled["baseline"]
    assert (one.runtime.arch.model_type, one.runtime.arch.num_layers) == ("qwen2", 1)
    assert (two.runtime.arch.model_type, two.runtime.arch.num_layers) == ("llama", 2)
    assert one.runtime.eos == (0, 2) and two.runtime.eos == (2,)
    for a, b in zip(one.encoded, two.encoded, strict=True):
        assert a.prompt == b.prompt
        text = a.prompt.text
        assert one.runtime.tokenizer.decode(a.tokens) == f"user: {text}"
        assert two.runtime.tokenizer.decode(b.tokens) == (
            f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        )


# ---- a run goes on with the ids it began with


def test_other_ids_of_the_same_prompts_are_refused_before_the_first_checkpoint(tmp_path):
    model = write_model(tmp_path)
    own = configure(model__source=model, **ONE)
    began(own, tmp_path / "run")
    began(own, tmp_path / "run")  # the same ones go on
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", "<|im_end|> "))
    with pytest.raises(ConfigError, match="prompts or their token ids changed since the run began"):
        train(own, tmp_path / "run")


def test_a_run_continued_on_another_day_and_in_another_time_zone_asks_the_same(
    tmp_path, monkeypatch
):
    template = "{{ strftime_now('%d %b %Y %H') }}" + tiny.CHAT_TEMPLATE
    own = configure(model__source=write_model(tmp_path, template), **ONE)
    found = []
    for day in (1, 2):
        monkeypatch.setattr(chat_template_utils, "datetime", _clock(day))
        began(own, tmp_path / "run")  # it checks the prompts' ids
        found.append((tmp_path / "run/split.json").read_bytes())
    assert found[0] == found[1]
    recorded = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert recorded["data.date"] == "2024-07-26"


def _clock(day):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 11, day, 23 - day)

    return Clock


# ---- numbers that are none


def test_a_model_of_nan_ends_an_evaluation_by_name(tmp_path):
    broken = write_model(tmp_path, damage=np.nan)
    own = configure(eval__temperature=0, **ONE)  # the other way to take a token
    with pytest.raises(GateError, match=rf"model '{broken}'.*: \d of \d responses have log-probs"):
        evaluate(own, candidate=str(broken), baseline=str(broken), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_nan_generates_nothing(tmp_path, capsys):
    broken = write_model(tmp_path, damage=np.nan)
    given = (MESH | SMALL).items()
    keys = [f"--config.{key}={value}" for key, value in given]
    argv = ["generate", f"--config={SMOKE}", *keys, f"--model={broken}", "--prompt=hi"]
    assert main(argv) == 70
    out, err = capsys.readouterr()
    assert out == "" and f"model '{broken}'" in err and "not finite" in err


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["logp", "sampling_logp"])
def test_a_log_prob_that_is_not_finite_is_seen_in_a_response_and_not_behind_it(field, bad):
    zeros = np.zeros((2, 3, 4), np.float32)
    samples = Samples(zeros.astype(int), np.full((2, 3), 2), zeros, zeros, np.ones((2, 3), np.int8))
    changed = zeros.copy()
    changed[1, 2, 2] = bad  # behind the response
    check_finite(configure(), samples._replace(**{field: changed}), "generate")
    changed[1, 2, 1] = bad
    with pytest.raises(GateError, match=r"'random:tiny' \(generate\): 1 of 6 responses"):
        check_finite(configure(), samples._replace(**{field: changed}), "generate")


def test_a_temperature_so_low_that_logits_overflow_gives_no_finite_log_prob():
    keys = jax.random.split(jax.random.key(0), (1, 1))
    logits = jnp.linspace(-9, 9, 7)[None, None]
    assert not np.isfinite(choose(keys, logits, SamplingParams(temperature=1e-38))[2]).any()
    assert np.isfinite(choose(keys, logits, SamplingParams(temperature=1e-30))[2]).all()


def test_a_bound_that_one_prompt_leaves_open_is_null_in_json():
    def length(prompts, responses):
        reward = np.array([[float(len(text)) for text in group] for group in responses])
        return Verdict(None, reward, (None,) * len(prompts))

    prompt = Prompt("p", ({"role": "user", "content": "p"},))
    encoded = [EncodedPrompt(prompt, np.ones(1, np.int32), np.uint32(0))]
    found = compare(configure(**ONE), Oracle(length), encoded, [["long"]], [["ab"]]).result()
    assert found["reward_gain_low"] == -np.inf  # one prompt says nothing of others
    read = json.loads(to_json(found), parse_constant=interrupt)
    assert read["reward_gain_low"] is None and read["reward_gain"] == 2.0


# ---- positions


def test_responses_beyond_the_models_positions_are_refused_before_anything_is_compiled(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"max_prompt_length=256 and sampling\.max_new_tokens=257 make 513 positions, and the"
        r" model reads 512",
    ):
        build_runtime(configure(sampling__max_new_tokens=257))
    build_runtime(configure(sampling__max_new_tokens=256))
    with pytest.raises(ConfigError, match="model reads 512"):
        train(configure(sampling__max_new_tokens=600), tmp_path / "run")
    with pytest.raises(ConfigError, match="model reads 512"):
        evaluate(
            configure(sampling__max_new_tokens=600),
            candidate="random:tiny",
            baseline="random:tiny",
            output=None,
        )


def test_linear_rope_scaling_reaches_its_factor_further_but_not_gemma_3s(tmp_path):
    stretched = write_model(tmp_path, rope_scaling=LinearScaling(2.0))
    build_runtime(configure(model__source=stretched, sampling__max_new_tokens=600))
    with pytest.raises(ConfigError, match="make 1056 positions, and the model reads 1024"):
        build_runtime(configure(model__source=stretched, sampling__max_new_tokens=800))
    gemma = tiny_arch(
        model_type="gemma3_text",
        sliding_window=5,
        sliding_layers=(0,),
        query_pre_attn_scalar=8,
        local_rope_theta=10.0,
        rope_scaling=LinearScaling(8.0),
    )
    assert gemma.reach == gemma.max_positions == 512
