"""Every oracle's settings are checked with the configuration, before anything is made or loaded."""

import math

import pytest
from ml_collections import ConfigDict

from ssppo_jax.config import Component, component, rule_problems
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
        ("judge", {"model": "j", "base_url": "localhost:8000"}, "begins with http:// or https://"),
        ("judge", {"model": ""}, "must be the endpoint's name for a model"),
        ("judge", {"model": "j", "style": "arena"}, "one of 'alpaca_eval', 'mt_bench'"),
        ("judge", {"model": "j", "concurrency": 0}, "concurrency=0"),
        ("judge", {"model": "j", "attempts": 0}, "attempts=0"),
        ("judge", {"model": "j", "max_tokens": -1}, "max_tokens=-1"),
        ("judge", {"model": "j", "timeout": 0.0}, "timeout=0.0: must be a number above 0"),
        ("judge", {"model": "j", "deadline": math.inf}, "deadline=inf"),
        ("judge", {"model": "j", "retry_delay": -1.0}, "retry_delay=-1.0"),
        ("judge", {"model": "j", "temperature": -1.0}, "temperature=-1.0"),
        ("reward_model", {}, "must be a model: --config.oracle.source=owner/name or a folder"),
        ("reward_model", {"source": "x", "dtype": "int8"}, "one of 'float32', 'bfloat16'"),
        ("reward_model", {"source": "x", "batch_size": 0}, "batch_size=0"),
        ("reward_model", {"source": "x", "max_length": 0}, "max_length=0"),
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
    assert problem.startswith("oracle.") and named in problem


def test_all_wrong_settings_are_named_at_once():
    assert len(problems("judge", base_url="x", attempts=0)) == 3


@pytest.mark.parametrize("name", ORACLES)
def test_the_defaults_keep_the_rules(name):
    needed = {"judge": {"model": "j"}, "reward_model": {"source": "owner/name"}}
    assert problems(name, **needed.get(name, {})) == []
