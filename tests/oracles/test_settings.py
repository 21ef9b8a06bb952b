"""Every oracle's settings are checked with the configuration, before anything is made or loaded."""

import math

import pytest
from ml_collections import ConfigDict

from ssppo_jax.config import Component, component, rule_problems
from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles import ORACLES


def problems(name, **given):
    node = component(ORACLES, name, **given)
    where = (Component("oracle", ORACLES, name, "who judges"),)
    return rule_problems(ConfigDict({"oracle": node}), (), where)


@pytest.mark.parametrize(
    ("name", "given", "named"),
    [
        ("sentiment", {"temperature": -1.0}, "temperature=-1.0: must be 0 or more"),
        ("sentiment_overconfident", {"temperature": -1.0}, "temperature=-1.0"),
        ("length", {"temperature": math.nan}, "temperature=nan: must be a finite number"),
        ("length", {"target": -1}, "target=-1: must be 0 or more"),
        ("combine", {"temperature": -1.0}, "temperature=-1.0"),
        ("judge", {"base_url": "localhost:8000"}, "begins with http:// or https://"),
        ("judge", {"base_url": "http:///v1"}, "begins with http:// or https://"),
        ("judge", {"base_url": "http://h:99999999/v1"}, "begins with http:// or https://"),
        ("judge", {"base_url": "http://me:secret@h/v1"}, "base_url=(not shown): must be an addr"),
        ("judge", {"base_url": "http://h/v1?key=secret"}, "without a password, ? or #"),
        ("judge", {"api_key_env": "sk-secret"}, "api_key_env=(not shown): must be the name of"),
        ("judge", {"style": "arena"}, "one of 'alpaca_eval', 'mt_bench'"),
        ("judge", {"concurrency": 0}, "concurrency=0"),
        ("judge", {"attempts": 0}, "attempts=0"),
        ("judge", {"max_tokens": -1}, "max_tokens=-1"),
        ("judge", {"timeout": 0.0}, "timeout=0.0: must be a number above 0"),
        ("judge", {"deadline": math.inf}, "deadline=inf"),
        ("judge", {"retry_delay": -1.0}, "retry_delay=-1.0"),
        ("judge", {"temperature": -1.0}, "temperature=-1.0"),
        ("reward_model", {"dtype": "int8"}, "one of 'float32', 'bfloat16'"),
        ("reward_model", {"batch_size": 0}, "batch_size=0"),
        ("reward_model", {"max_length": 0}, "max_length=0"),
        ("pairrm", {"dtype": "float16"}, "one of 'float32', 'bfloat16'"),
        ("pairrm", {"source_template": "x"}, "must be a text that contains {prompt}"),
        ("pairrm", {"batch_size": 0}, "batch_size=0"),
        ("pairrm", {"max_source_length": 0}, "max_source_length=0"),
        ("code", {"code_style": "x"}, "one of 'auto', 'fenced', 'whole'"),
        ("code", {"sandbox": "none"}, "one of 'strict', 'limits'"),
        ("code", {"timeout": 0.0}, "timeout=0.0"),
        ("code", {"memory_mb": 0}, "memory_mb=0"),
        ("code", {"disk_mb": 0}, "disk_mb=0"),
        ("code", {"workers": 0}, "workers=0"),
        ("reasoning_gym", {"answer_style": "bxed"}, "answer_style='bxed': must be one of 'auto'"),
        ("reasoning_gym", {"format_weight": -1.0}, "format_weight=-1.0"),
        ("math_verify", {"answer_style": "bxed"}, "answer_style='bxed': must be one of 'auto'"),
        ("math_verify", {"format_weight": -1.0}, "format_weight=-1.0"),
        ("math_verify", {"timeout": 0.0}, "timeout=0.0"),
    ],
)
def test_a_setting_out_of_range_is_named(name, given, named):
    (problem,) = problems(name, **given)
    assert problem.startswith("oracle.") and named in problem and "secret" not in problem


def test_all_wrong_settings_are_named_at_once():
    assert len(problems("judge", base_url="x", attempts=0)) == 2


@pytest.mark.parametrize(
    ("name", "named"), [("judge", "say which model"), ("reward_model", "needs a model")]
)
def test_a_model_must_be_named(name, named):
    with pytest.raises(ConfigError, match=named):
        ORACLES[name]()
