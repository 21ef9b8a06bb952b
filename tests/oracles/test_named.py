"""Oracles named in one text are read alike in both forms, and mistakes are named."""

import pytest

from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.named import build_named, read_named


def test_names_and_json_are_read_with_all_settings():
    assert read_named("", ORACLES) == read_named("[]", ORACLES) == []
    plain = read_named("keywords, length", ORACLES)
    assert plain == read_named('["keywords", {"oracle": "length"}]', ORACLES)
    assert [(one.label, one.settings) for one in plain] == [
        ("keywords", {}),
        ("length", {"target": 40, "temperature": 10.0}),
    ]
    text = '[{"oracle": "length", "target": 5, "as": "brief"}, "length"]'
    assert list(build_named(text, ORACLES)) == ["brief", "length"]
    assert read_named(text, ORACLES)[0].settings["target"] == 5


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("keyword", "'keyword' is not known; did you mean 'keywords'"),
        ("[keywords", "not JSON"),
        ("[3]", "a list of names or objects is wanted"),
        ('{"oracle": "length"}', "a list of names or objects is wanted"),
        ("length,length", "two oracles are called length"),
        ('[{"oracle": "length", "target": -1}]', "target=-1: must be 0 or more"),
        ('[{"oracle": "length", "goal": 3}]', "takes no 'goal'"),
        ('[{"oracle": "length", "as": "previous"}]', "a label is made of"),
        ('[{"oracle": "length", "as": "a/b"}]', "a label is made of"),
    ],
)
def test_mistakes_are_named(text, named):
    with pytest.raises(ConfigError) as error:
        read_named(text, ORACLES)
    assert named in str(error.value)
