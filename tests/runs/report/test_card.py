"""A model card says what the run's record says, and no more."""

import pytest
import yaml

from ssppo_jax import schema
from ssppo_jax.config import flatten
from ssppo_jax.losses import LOSSES
from ssppo_jax.runs.report.card import licence_of, model_card

RESULT = {"win_rate": 0.7123, "low": 0.68, "high": 0.741, "prompts": 64, "samples": 4}
GAIN = {"reward": 0.5, "reward_start": 0.2, "reward_gain": 0.3}
GAIN |= {"reward_gain_low": 0.25, "reward_gain_high": 0.35}
PROMPTS = {"train_prompts": 416, "heldout_prompts": 64, "too_long": [["a", 700]]}


def card(source="embedded:smollm2", licence="apache-2.0", result=RESULT, **more):
    config = flatten(schema.load("smoke", {"model.source": source}))
    method = LOSSES["s_sppo"].__doc__
    given = {"method": method, "licence": licence, "prompts": PROMPTS, "version": "9.9"}
    text = model_card(config, result, **given, **more)
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_head_names_base_licence_and_library_as_the_hub_reads_them():
    head, body = card()
    assert head["license"] == "apache-2.0" and head["library_name"] == "transformers"
    assert head["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert head["tags"] == ["ssppo_jax", "s_sppo"] and "under `apache-2.0`" in body
    assert card(adapter=True)[0]["library_name"] == "peft"


def test_a_local_folder_is_no_name_on_the_hub(tmp_path, monkeypatch):
    assert card(source="models/llama")[0]["base_model"] == "models/llama"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama").mkdir(parents=True)
    assert "base_model" not in card(source="models/llama")[0]
    (tmp_path / "README.md").write_text('---\nlicense: "mit"\n---\n')
    assert licence_of("x", tmp_path) == "mit"


def test_the_evaluation_stands_with_its_interval_and_its_limits():
    _, body = card(result=RESULT | GAIN)
    assert "**0.712** (95% interval 0.680 to 0.741, over 64 held-out prompts with 4" in body
    assert "`reward`: 0.500, from 0.200 (gain 0.300, 0.250 to 0.350)" in body
    assert "The oracle `length` that trained the policy judged this." in body


def test_method_data_settings_and_citation_are_those_of_the_run():
    _, body = card()
    assert "`s_sppo`: Semantic SPPO" in body and "https://arxiv.org/abs/2606.01561" in body
    assert "416 trained on, 64 held out, 1 left out as too long" in body
    assert "| `loss.beta` | `0.05` |" in body and "ssppo_jax 9.9" in body


def test_a_run_on_given_responses_is_not_said_to_have_sampled_or_asked_an_oracle():
    result = {"prompts": 8.0, "loss": 0.02, "loss_low": 0.01, "loss_high": 0.03}
    given = {"data.source.name": "answered", "loss.name": "dpo"}
    config = flatten(schema.load("smoke", {})) | given
    made = {"method": "", "licence": "", "prompts": PROMPTS, "version": "9"}
    body = model_card(config, result, **made)
    assert "None was sampled, and no oracle judged." in body and "The policy sampled" not in body
    assert "- `loss` of 8 held-out rows: 0.02 (95% interval 0.01 to 0.03)" in body
    assert "that trained the policy judged" not in body and "| `oracle.name`" not in body
    assert "| `sampling.num_samples`" not in body and "| `loss.beta` |" in body
    assert "No rows were held out" in model_card(config, {}, **made)


def test_an_unknown_licence_is_said_and_not_guessed(tmp_path):
    assert licence_of(str(tmp_path), tmp_path) == ""
    head, body = card(source=str(tmp_path), licence="")
    assert head["license"] == "other" and "base_model" not in head
    assert "does not state a licence. Look it up" in body
    (tmp_path / "README.md").write_text("---\nlicense: llama3.1\ntags: []\n---\n# Model\n")
    assert licence_of(str(tmp_path), tmp_path) == "llama3.1"


def test_a_setting_stays_in_its_cell_whatever_stands_in_it():
    config = flatten(schema.load("smoke", {})) | {"sampling.stop": "a|b\nc"}
    given = {"method": "", "licence": "", "prompts": PROMPTS, "version": "9"}
    lines = model_card(config, RESULT, **given).split("\n")
    assert "| `sampling.stop` | `a\\|b c` |" in lines


@pytest.mark.parametrize("key", ["oracle.api_key_env", "oracle.password", "data.source.token"])
def test_settings_that_may_hold_a_secret_are_left_out(key):
    config = flatten(schema.load("smoke", {})) | {key: "hidden-value"}
    given = {"method": "", "licence": "", "prompts": PROMPTS, "version": "9"}
    assert "hidden-value" not in model_card(config, RESULT, **given)
