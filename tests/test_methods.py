"""A published method is chosen by its name, and a departure from it is said."""

import logging

import numpy as np
import pytest

from ssppo_jax import config as cfg
from ssppo_jax import schema
from ssppo_jax.errors import ConfigError
from ssppo_jax.losses import COMPANIONS, LOSSES
from ssppo_jax.losses.advantages import ADVANTAGES
from ssppo_jax.rollout.groups import overlong_buffer
from ssppo_jax.runs.folder import digest

REWARD = np.array([[0.0, 0.0, 3.0]], np.float32)


def load(**overrides):
    """The smoke config with overrides, `__` for a dot."""
    return schema.load("smoke", {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.mark.parametrize(
    ("loss", "advantage"),
    [("dr_grpo", [-1, -1, 2]), ("rloo", [-1.5, -1.5, 3])],
)
def test_the_advantage_comes_with_the_loss(loss, advantage):
    config = load(loss__name=loss)
    found = cfg.bind(ADVANTAGES, config.advantage)(REWARD)
    np.testing.assert_allclose(found, [advantage], atol=1e-6)


def test_dapo_brings_dynamic_sampling_the_length_reward_and_the_mask():
    config = load(loss__name="dapo", sampling__max_new_tokens="50")
    group = config.group
    assert group.filter_groups and group.mask_truncated_completions
    assert group.max_num_gen_batches == 10
    assert overlong_buffer(config) == 10  # a fifth, as 4096 of the paper's 20480


def test_opponent_losses_bring_their_two_samples_and_their_reference():
    config = load(loss__name="nash_md")
    assert (config.sampling.num_samples, config.train.reference) == (2, "initial")


def test_inpo_brings_the_initial_policy_for_its_reference():
    assert load(loss__name="inpo").train.reference == "initial"
    assert load(loss__name="ipo").train.reference == "iteration"


def test_tokens_that_sampling_leaves_out_are_said_to_be_in_the_log_probs():
    cut = {"sampling__top_k": "5", "sampling__top_p": "0.9", "sampling__min_p": "0.1"}
    for name in ("grpo", "nash_md"):
        (caution,) = schema.cautions(load(loss__name=name, **cut))
        assert caution.startswith(
            "sampling.top_k=5, sampling.top_p=0.9, sampling.min_p=0.1: "
            f"{name} takes log-probs over all tokens"
        )
    assert schema.cautions(load(loss__name="dpo", **cut)) == []  # no gradient of the sampling


def test_a_policy_gradient_at_another_temperature_than_its_samples_is_said():
    (caution,) = schema.cautions(load(loss__name="nash_md", sampling__temperature="0.9"))
    assert caution.startswith("sampling.temperature=0.9: nash_md takes log-probs at temperature 1")
    assert schema.cautions(load(loss__name="grpo", sampling__temperature="0.9")) == []
    assert schema.cautions(load(loss__name="s_sppo", sampling__temperature="0.9")) == []


def test_what_bfloat16_loses_is_said():
    half = {"model__param_dtype": "bfloat16"}
    assert schema.cautions(load(**half)) == []
    (lost,) = schema.cautions(load(**half, optimizer__rounding="nearest"))
    assert "optimizer.rounding=nearest: an update below 1/512 of a parameter is lost" in lost
    adam = {"optimizer__name": "adamw"}
    assert schema.cautions(load(**half, **adam)) == []  # its moments are the masters' float32
    (moments,) = schema.cautions(load(**half, **adam, optimizer__rounding="stochastic"))
    assert "set optimizer.state_dtype=float32" in moments
    assert schema.cautions(load(**adam, optimizer__state_dtype="bfloat16")) == [moments]
    (merged,) = schema.cautions(load(**half, lora__rank="4"))
    assert "policy/ rounds the merged weights" in merged


def test_the_temperature_of_log_probs_and_the_reference_belong_to_a_runs_fingerprint():
    changes = (
        {"group__logprob_temperature": "raw"},
        {"group__first_old_logp": "scored"},
        {"train__kl_reference": "iteration"},
    )
    digests = {digest(load(loss__name="grpo", **change)) for change in ({}, *changes)}
    assert len(digests) == 4


def test_a_choice_against_the_method_stands_and_is_said():
    config = load(loss__name="dr_grpo", advantage__name="grpo")
    assert config.advantage.name == "grpo"
    assert load(advantage="grpo", loss="dr_grpo").advantage.name == "grpo"  # in any order
    (note,) = schema.method_notes(config)
    assert "loss.name=dr_grpo with advantage.name=grpo is not the published method" in note
    (note,) = schema.method_notes(load(loss__name="dr_grpo"))
    assert note == "loss.name=dr_grpo brings advantage.name=dr_grpo"
    assert schema.method_notes(load()) == []


def test_another_loss_takes_back_what_the_one_before_had_set_and_leaves_what_the_user_set():
    config = schema.base_config()
    schema.select(config, "loss", "dapo")
    config.group.overlong_buffer_len = 7
    schema.select(config, "loss", "grpo")
    default = schema.base_config()
    assert config.group.overlong_buffer_len == 7
    config.group.overlong_buffer_len = default.group.overlong_buffer_len
    schema.select(default, "loss", "grpo")
    assert cfg.flatten(config) == cfg.flatten(default)


def test_every_companion_is_a_key_and_differs_from_its_default():
    default = cfg.flatten(schema.base_config())
    assert set(COMPANIONS) <= set(LOSSES)
    for wanted in COMPANIONS.values():
        assert all(default[path] != value for path, value in wanted.items())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("optim.transform.name", "optimizer.name"),
        ("optim.learning_rate", "optimizer.learning_rate"),
        ("pairs.semantic_gate", "pairs.gate_level"),
        ("judge.reward_temperature", "oracle.reward_temperature"),
        ("train.initial_policy", "train.reference_storage"),
        ("hosts.timeout", "distributed.timeout"),
        ("model.repulsion_layer", "loss.repulsion_layer"),
    ],
)
def test_a_key_of_the_release_before_answers_with_its_new_name(old, new, tmp_path):
    with pytest.raises(ConfigError, match=f"{old}: no such key; it is now --config.{new}=1"):
        schema.load("smoke", {old: "1"})
    assert new in cfg.flatten(schema.base_config())
    file = tmp_path / "old.py"
    lines = (
        "from ssppo_jax.schema import base_config",
        "def get_config():",
        "    c = base_config()",
    )
    file.write_text("\n".join((*lines, f"    c.{old} = 1", "    return c")))
    with pytest.raises(ConfigError, match=rf"old\.py:4: .*; {old} is now {new}"):
        schema.load(str(file), {})


def test_a_key_that_is_gone_says_so():
    with pytest.raises(ConfigError, match=r"model\.kernels: no such key; it is gone"):
        schema.load("smoke", {"model.kernels": "false"})


def test_a_keyword_has_the_rule_of_its_own_annotation_and_no_other():
    def gate(similarity, *, temperature=-1.0, decay: cfg.Unit = 0.5):
        """A gate whose keyword is named like an oracle's."""

    parts = (cfg.Component("gate", {"gate": gate}, "gate", "a gate"),)
    config = cfg.build((), parts)
    assert cfg.rule_problems(config, (), parts) == []
    config.gate.decay = 2.0
    assert cfg.rule_problems(config, (), parts) == ["gate.decay=2.0: must be between 0 and 1"]


def test_no_keyword_is_named_like_a_key_of_the_run_in_the_same_node():
    for part in schema.COMPONENTS:
        beside = {
            key.path.removeprefix(part.path + ".")
            for key in schema.KEYS
            if key.path.startswith(part.path + ".")
        }
        for name, function in part.table.items():
            assert not beside & set(cfg.keyword_defaults(function)), (part.path, name)


def test_a_config_is_named_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = cfg.flatten(cfg.load_config("lora_quickstart"))
    assert by_name["lora.rank"] == 16
    assert cfg.flatten(cfg.load_config("ssppo_jax.configs.lora_quickstart")) == by_name
    with pytest.raises(ConfigError, match=r"the package has one: --config=smoke"):
        cfg.load_config("configs/smoke.py")
    with pytest.raises(ConfigError, match=r"no such config; did you mean 'quickstart'"):
        cfg.load_config("quikstart")
    monkeypatch.setenv("HOME", str(tmp_path))  # a shell leaves ~ alone behind --config=
    (tmp_path / "mine.py").write_text("def get_config():\n    return 3\n")
    assert cfg.load_config("~/mine.py") == 3


def test_a_run_says_what_its_loss_brought(caplog):
    caplog.set_level(logging.INFO)
    notes = schema.method_notes(load(loss__name="dapo", group__filter_groups="false"))
    assert notes[0].startswith("loss.name=dapo brings group.max_num_gen_batches=10")
    assert "group.filter_groups=False is not the published method, which has True" not in notes[0]
    assert notes[1].endswith("which has group.filter_groups=True")


def test_a_config_file_that_cannot_be_read_says_what_to_type(tmp_path):
    head = "from ssppo_jax.schema import *\ndef get_config():\n    c = base_config()\n"
    for line, words in (
        ("select(c, 'gate', 'linear')", r"choose one of data\.source, oracle"),
        ("select(c, 'loss', 'dpo', beta='big')", r"dpo takes beta='big': expected a number"),
        ("pass", r"get_config\(\) returns nothing; end it: return config"),
    ):
        file = tmp_path / "c.py"
        file.write_text(head + f"    {line}\n")
        with pytest.raises(ConfigError, match=words):
            schema.load(str(file), {})
    file.write_text(head + "    select(c, 'data.source', 'jsonl', path='p.jsonl')\n    return c\n")
    assert schema.load(str(file), {}).data.source.path == "p.jsonl"


def test_a_keyword_without_a_default_cannot_be_a_key():
    def topics(*, file: str):
        """Read topics."""

    with pytest.raises(ConfigError, match="its keyword 'file' has no default"):
        cfg.component({"topics": topics}, "topics")


def test_help_lists_the_words_that_a_key_allows():
    text = schema.help_text(schema.base_config())
    assert "or nowhere: pair, group_mean, pairwise, none" in text


def test_a_keyword_of_another_loss_is_said_to_be_that_losss():
    with pytest.raises(ConfigError) as error:
        load(loss__name="dpo", loss__repulsion_weight="2", loss__qqqq="1", loss__bta="1")
    told = str(error.value)
    assert "loss.name=dpo does not take it, s_sppo does; it takes: beta, label_smoothing" in told
    assert "--config.loss.qqqq: no such key; loss.name=dpo takes: beta" in told
    assert "--config.loss.bta: no such key; did you mean 'loss.beta'?" in told


def test_what_a_gate_or_a_temperature_cannot_do_is_said_before_a_run():
    square = "docs/examples/gate.py:ramp"
    (gate,) = schema.cautions(load(loss__name="dpo", pairs__gate__name=square))
    assert "loss.name=dpo does not read the gated target" in gate
    assert schema.cautions(load(loss__name="s_sppo", pairs__gate__name=square)) == []
    assert schema.cautions(load(loss__name="dpo")) == []
    (cold,) = schema.cautions(load(loss__name="s_sppo", sampling__temperature="0"))
    assert "sampling.temperature=0: the 4 responses to a prompt are equal" in cold
