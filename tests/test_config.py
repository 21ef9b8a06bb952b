"""The machinery alone, on a small table of its own."""

import pytest

from ssppo_jax import config as cfg
from ssppo_jax.config import Component, Key
from ssppo_jax.errors import ConfigError


def plain(x, *, rate: cfg.Unit = 0.5, name_of_it: str = "a"):
    """A component.

    Args:
      rate: how fast
        or how slow: both.
      name_of_it (str): a word

    Raises:
      ValueError: rate: not a keyword's meaning.
    """


def deep(x, *, depth: int = 2):
    """Another, indented by four.

    Args:
        depth: how deep
    """


TABLE = {"plain": plain, "deep": deep}
COMPONENTS = (Component("part", TABLE, "plain", "which part"),)
KEYS = (
    Key("seed", 0, "the seed", cfg.non_negative),
    Key("a.rate", 0.1, "a rate", cfg.positive),
    Key("a.on", True, "a switch"),
    Key("a.sizes", (64, 128), "sizes", cfg.increasing),
    Key("a.word", "x", "a word", cfg.one_of("x", "y")),
    Key("a.anything", None, "anything"),
)


@pytest.fixture
def config():
    return cfg.build(KEYS, COMPONENTS)


def overridden(config, **overrides):
    """Overrides with `__` for a dot, applied; the problems found."""
    return cfg.override(config, {k.replace("__", "."): v for k, v in overrides.items()}, COMPONENTS)


def write(folder, text, name="c.py"):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_a_components_keyword_defaults_are_its_keys(config):
    assert cfg.flatten(config) == {
        "seed": 0,
        "a.rate": 0.1,
        "a.on": True,
        "a.sizes": (64, 128),
        "a.word": "x",
        "a.anything": None,
        "part.name": "plain",
        "part.rate": 0.5,
        "part.name_of_it": "a",
    }
    assert cfg.call_kwargs(TABLE, config.part) == {"rate": 0.5, "name_of_it": "a"}


def test_meanings_are_read_at_any_indentation_with_their_continuation_lines():
    assert cfg.keyword_meanings(plain) == {
        "rate": "how fast or how slow: both.",
        "name_of_it": "a word",
    }
    assert cfg.keyword_meanings(deep) == {"depth": "how deep"}


def test_help_shows_every_key_with_its_value_and_meaning(config):
    assert overridden(config, part="deep", a__rate="0.25") == []
    lines = cfg.help_text(KEYS, COMPONENTS, config).splitlines()
    shown = dict(zip(lines[::2], (line.strip() for line in lines[1::2]), strict=True))
    assert shown["  --config.a.rate=0.25"] == "a rate"
    assert shown["  --config.a.sizes=(64,128)"] == "sizes"
    assert shown["  --config.part.name=deep"] == "which part: deep, plain"
    assert shown["  --config.part.depth=2"] == "how deep"
    assert len(shown) == len(cfg.flatten(config))


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("seed", "3", 3),
        ("a.rate", "1", 1.0),
        ("a.rate", "5e-7", 5e-7),
        ("a.on", "False", False),
        ("a.on", "yes", True),
        ("a.sizes", "(32,64)", (32, 64)),
        ("a.sizes", "[32, 64]", (32, 64)),
        ("a.sizes", "32", (32,)),
        ("a.word", "7", "7"),
        ("a.anything", "None", None),
        ("a.anything", "0.5", 0.5),
        ("a.anything", "word", "word"),
    ],
)
def test_text_is_read_as_the_type_of_what_it_replaces(config, path, text, value):
    assert cfg.override(config, {path: text}, COMPONENTS) == []
    found = cfg.flatten(config)[path]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("seed", "1.5", "expected a whole number, as in 0"),
        ("seed", "True", "expected a whole number"),
        ("seed", "", "expected a whole number"),
        ("seed", "{{1}}", "expected a whole number"),
        ("a.rate", "9" * 400, "expected a number that is not so large"),
        ("a.rate", "fast", "expected a number, as in 0.1"),
        ("a.rate", "True", "expected a number"),
        ("a.on", "2", "expected true or false"),
        ("a.sizes", "(a,b)", "expected a list such as (64,128)"),
        ("a.sizes", "(32,64.5)", "expected a list"),
        ("a.sizes", "small", "expected a list"),
    ],
)
def test_a_wrong_type_says_what_is_expected_and_changes_nothing(config, path, text, expected):
    before = cfg.flatten(config)
    (problem,) = cfg.override(config, {path: text}, COMPONENTS)
    assert problem.startswith(f"--config.{path}={text}: ") and expected in problem
    assert cfg.flatten(config) == before


def test_an_unknown_key_names_the_nearest(config):
    (problem,) = overridden(config, a__rat="1")
    assert problem == "--config.a.rat: no such key; did you mean 'a.rate'?"
    (problem,) = overridden(config, zzzzqqq="1")
    assert "--help lists them" in problem


def test_every_problem_is_found_and_the_good_overrides_still_apply(config):
    problems = overridden(config, a__rat="1", seed="x", part="plane", a__rate="-1", part__depth="3")
    assert [p.split(":")[0] for p in problems] == [
        "--config.part=plane",
        "--config.a.rat",
        "--config.seed=x",
    ]
    assert "did you mean 'plain'? allowed: deep, plain" in problems[0]
    assert config.a.rate == -1.0
    with pytest.raises(ConfigError, match=r"(?s)3 problem.*plane.*a\.rat.*seed"):
        cfg.raise_problems(problems)
    cfg.raise_problems([])


@pytest.mark.parametrize("order", [1, -1])
def test_a_named_component_starts_from_its_defaults_whatever_the_order(config, order):
    cfg.choose(config, "part", TABLE, "plain", rate=0.9)
    overrides = {"part.rate": "0.7", "part.name": "plain"}
    assert cfg.override(config, dict(list(overrides.items())[::order]), COMPONENTS) == []
    assert cfg.call_kwargs(TABLE, config.part) == {"rate": 0.7, "name_of_it": "a"}
    assert overridden(config, part="deep") == []
    assert cfg.call_kwargs(TABLE, config.part) == {"depth": 2}


def test_a_component_named_in_both_ways_is_refused(config):
    problems = cfg.override(config, {"part": "deep", "part.name": "plain"}, COMPONENTS)
    assert problems == ["--config.part.name=plain: --config.part=deep is given too; leave one out"]


def test_a_keyword_of_another_component_is_unknown(config):
    (problem,) = overridden(config, part="deep", part__rate="0.1")
    assert problem.startswith("--config.part.rate: no such key")


def test_choosing_with_a_wrong_name_or_keyword_names_the_nearest(config):
    with pytest.raises(
        ConfigError, match=r"'dep' is not known; did you mean 'deep'\? allowed: deep, plain"
    ):
        cfg.choose(config, "part", TABLE, "dep")
    with pytest.raises(
        ConfigError, match=r"deep takes no 'dept'; did you mean 'depth'\? it takes: depth"
    ):
        cfg.choose(config, "part", TABLE, "deep", dept=1)


def test_ranges_and_non_finite_numbers_are_refused_by_name(config):
    config.seed, config.a.rate, config.a.sizes, config.a.word = -1, 0.0, (64, 64), "z"
    config.part.rate = float("nan")
    problems = cfg.rule_problems(config, KEYS, COMPONENTS)
    assert sorted(problems) == [
        "a.rate=0.0: must be a number above 0",
        "a.sizes=(64, 64): must be increasing positive integers, e.g. (64,128,256)",
        "a.word='z': must be one of 'x', 'y'",
        "part.rate=nan: must be a finite number",
        "seed=-1: must be 0 or more",
    ]
    config.part.rate = 1.5
    assert "part.rate=1.5: must be between 0 and 1" in cfg.rule_problems(config, KEYS, COMPONENTS)


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (cfg.positive, (1e-9, 1), (0, -1)),
        (cfg.non_negative, (0, 1), (-1e-9,)),
        (cfg.unit, (0, 0.5, 1), (-0.1, 1.1)),
        (cfg.fraction, (0.1, 1), (0, 1.1)),
        (cfg.increasing, ((1,), (1, 2)), ((), (0, 1), (2, 1), (1, 1), (1.0, 2), ("1",), (None,))),
    ],
)
def test_rules_draw_the_line_where_they_say(rule, good, bad):
    assert [rule(x) for x in good] == [None] * len(good)
    assert all(rule(x) for x in bad)


def test_a_built_config_is_locked(config):
    with pytest.raises(AttributeError, match="rate"):
        config.a.rat = 1.0
    with pytest.raises(AttributeError):
        config.part.depth = 1


def test_a_config_file_gets_the_argument_after_the_colon(tmp_path):
    path = write(tmp_path, "def get_config(size='small'):\n    return size\n")
    assert cfg.load_config(path) == "small"
    assert cfg.load_config(path + ":large") == "large"


def test_a_missing_file_names_what_is_there(tmp_path):
    path = write(tmp_path, "", "smoke.py")
    with pytest.raises(ConfigError, match=r"no file .*smok\.py.*did you mean .*smoke\.py"):
        cfg.load_config(str(tmp_path / "smok.py"))
    with pytest.raises(ConfigError, match="found there: nothing"):
        cfg.load_config(str(tmp_path / "nowhere" / "mine.py"))
    with pytest.raises(ConfigError, match=r"defines no get_config"):
        cfg.load_config(path)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("def get_config():\n    return {}[1]\n", 2, "KeyError: 1"),
        ("import no_such_module_here\n", 1, "ModuleNotFoundError"),
        ("def get_config(:\n", 1, "SyntaxError"),
        ("\n\nimport broken_helper\n", 3, "SyntaxError"),
        ("def get_config():\n    pass\n", None, "TypeError"),  # called with an argument
    ],
)
def test_an_error_inside_a_config_file_is_told_by_file_and_line(
    tmp_path, monkeypatch, text, line, message
):
    path = write(tmp_path, text)
    (tmp_path / "broken_helper.py").write_text("x = 1\ny = 2\n\n\n\ndef (:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError) as error:
        cfg.load_config(path if line else path + ":argument")
    assert str(error.value).startswith(
        f"{path}:{line}: " if line else f"{path}: "
    ) and message in str(error.value)


def test_a_config_file_may_hold_a_dataclass_and_its_package_may_be_broken(tmp_path, monkeypatch):
    text = "from __future__ import annotations\nimport dataclasses\n\n@dataclasses.dataclass\n"
    text += "class Own:\n    rate: float = 0.5\n\ndef get_config():\n    return Own()\n"
    assert cfg.load_config(write(tmp_path, text)).rate == 0.5
    (tmp_path / "broken_package").mkdir()
    (tmp_path / "broken_package" / "__init__.py").write_text("undefined_name\n")
    (tmp_path / "broken_package" / "mine.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"--config=broken_package\.mine: NameError: .*undefined_n"
    ):
        cfg.load_config("broken_package.mine")


def test_a_config_files_own_refusal_keeps_its_words(tmp_path):
    path = write(
        tmp_path,
        "from ssppo_jax.errors import ConfigError\ndef get_config():\n    raise ConfigError('no: do"
        " this')\n",
    )
    with pytest.raises(ConfigError, match=r":3: no: do this$"):
        cfg.load_config(path)
