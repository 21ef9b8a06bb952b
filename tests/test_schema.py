"""The real keys: each has a meaning and a rule that holds, and a config that cannot run is refused
before a compile."""

import re
from pathlib import Path

import jax
import pytest

from ssppo_jax import config as cfg
from ssppo_jax import schema
from ssppo_jax.errors import ConfigError

TABLES = {c.path: c.table for c in schema.COMPONENTS}
FUNCTIONS = [(path, name) for path, table in TABLES.items() for name in table]
CONFIG = (
    "from ssppo_jax.schema import base_config, select\ndef get_config():\n    config ="
    " base_config()\n"
)


@pytest.fixture
def base():
    return schema.base_config()


def problems_of(config, devices=1):
    with pytest.raises(ConfigError) as error:
        schema.check(config, devices)
    return str(error.value)


def test_the_defaults_run_on_one_device_and_on_eight(base):
    for devices in (1, 2, 8):
        schema.check(base, devices)


def test_help_lists_every_key_of_the_config_once_and_none_without_a_meaning(base):
    lines = schema.help_text(base).splitlines()
    keys = [line.split("=")[0].removeprefix("  --config.") for line in lines[::2]]
    assert sorted(keys) == sorted(cfg.flatten(base))
    assert all(line.strip() for line in lines[1::2])


@pytest.mark.parametrize(("path", "name"), FUNCTIONS)
def test_every_component_keyword_is_documented_and_of_a_plain_type(path, name):
    function = TABLES[path][name]
    defaults = cfg.keyword_defaults(function)
    meanings = cfg.keyword_meanings(function)
    assert {k for k in defaults if not meanings.get(k)} == set()
    assert all(type(v) in (bool, int, float, str, tuple) for v in defaults.values())


@pytest.mark.parametrize(("path", "name"), FUNCTIONS)
def test_every_component_can_be_named_and_its_defaults_pass(base, path, name):
    needed = {"judge": {"oracle.model": "x"}, "reward_model": {"oracle.source": "x"}}.get(name, {})
    given = {path: name} | needed  # what has no default
    assert cfg.override(base, given, schema.COMPONENTS, chosen=schema.select) == []
    schema.check(base, 8)


NUMBERS = {"positive": (0, -1), "non_negative": (-1,), "unit": (-0.5, 1.5), "fraction": (0, 1.5)}
NUMBERS["is_seed"] = (-1, 2**32)


@pytest.mark.parametrize(
    "key", [k for k in schema.KEYS if k.rule and not isinstance(k.default, (str, tuple))]
)
def test_a_number_out_of_range_is_refused_by_its_name(base, key):
    for value in NUMBERS.get(key.rule.__name__, (-3,) if "overlong" in key.path else (1, -3)):
        flat = {key.path: str(value)}
        if cfg.override(base, flat, schema.COMPONENTS):
            continue  # a fraction for a whole number: already refused
        assert f"{key.path}={type(key.default)(value)!r}: must be " in problems_of(base)


@pytest.mark.parametrize(
    "path", [k.path for k in schema.KEYS if isinstance(k.default, float)] + ["loss.beta"]
)
@pytest.mark.parametrize("text", ["nan", "inf"])
def test_numbers_that_are_not_finite_are_refused_by_name(base, path, text):
    assert cfg.override(base, {path: text}, schema.COMPONENTS) == []
    assert f"{path}={text}: must be a finite number" in problems_of(base)


FREE_TEXTS = (
    "lora.targets",
    "data.date",
    "data.prompt_template",
    "eval.oracles",
    "tracking.report_to",
    "tracking.project",
)
CHOICES = [
    k for k in schema.KEYS if k.rule and isinstance(k.default, str) and k.path not in FREE_TEXTS
]


@pytest.mark.parametrize("date", ["today", "20240726", "2024-02-30", "2024-7-26", ""])
def test_what_is_no_date_is_refused_with_an_example(base, date):
    assert cfg.override(base, {"data.date": date}, schema.COMPONENTS) == []
    assert f"data.date={date!r}: must be a date, such as 2024-07-26" in problems_of(base)


def test_a_pattern_that_is_no_regular_expression_is_refused(base):
    assert cfg.override(base, {"lora.targets": "attn/(q"}, schema.COMPONENTS) == []
    assert "lora.targets='attn/(q': must be a regular expression (missing )" in problems_of(base)


@pytest.mark.parametrize("key", CHOICES)
def test_a_word_that_is_no_choice_is_refused_with_the_choices(base, key):
    assert cfg.override(base, {key.path: "nonsense"}, schema.COMPONENTS) == []
    message = problems_of(base)
    assert f"{key.path}='nonsense': must be one of" in message and str(key.default) in message


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ({"loss.beta": "0"}, "loss=s_sppo: loss keyword beta=0.0: must be > 0"),
        ({"loss.beta": "-1"}, "loss=s_sppo: loss keyword beta=-1.0: must be > 0"),
        (
            {"loss.pair_reduction": "men"},
            "loss=s_sppo: loss keyword pair_reduction='men': must be mean or sum",
        ),
        (
            {"loss": "dpo", "loss.label_smoothing": "0.5"},
            "loss=dpo: loss keyword label_smoothing=0.5",
        ),
        (
            {"loss": "dpo", "loss.label_smoothing": "1.5"},
            "loss=dpo: loss keyword label_smoothing=1.5: must be in [0, 0.5)",
        ),
        (
            {"pairs.gate": "power", "pairs.gate.exponent": "-1"},
            "pairs.gate=power: gate power: exponent=-1.0",
        ),
        ({"oracle.temperature": "-1"}, "oracle.temperature=-1.0: must be 0 or more"),
        ({"oracle": "length", "oracle.target": "-1"}, "oracle.target=-1: must be 0 or more"),
        ({"optimizer.decay": "1.5"}, "optimizer.decay=1.5: must be between 0 and 1"),
        ({"sampling.num_samples": "1"}, "sampling.num_samples=1: must be 2 or more"),
        ({"checkpoint.keep": "1"}, "checkpoint.keep=1: must be 2 or more"),
        ({"data.prompt_buckets": "()"}, "data.prompt_buckets=(): must be increasing"),
        ({"data.prompt_buckets": "64,128"}, "the last must reach data.max_prompt_length=512"),
        (
            {"train.reference": "initial", "train.reference_storage": "off"},
            "train.reference=initial needs",
        ),
        (
            {"loss": "grpo", "loss.beta": "0.1", "train.reference_storage": "off"},
            "train.kl_reference=initial needs train.reference_storage=host, disk or device, not"
            " off",
        ),
        ({"train.rollout_lag": "1"}, "train.rollout_lag=1: only group losses weigh old samples"),
        (
            {"loss": "inpo", "train.reference": "iteration"},
            "train.reference=iteration: inpo weighs a fixed reference against pi_t by"
            " loss.tau=0.0025; set initial, or loss.tau=0",
        ),
        (
            {"loss": "grpo", "sampling.temperature": "0"},
            "sampling.temperature=0.0: the responses to a prompt would all be the same",
        ),
        ({"eval.num_samples": "9"}, "eval.final_num_samples=4 is below eval.num_samples=9"),
        (
            {"train.prompts_per_iteration": "63"},
            "train.prompts_per_iteration=63 is below train.batch_size=64",
        ),
        (
            {"optimizer.schedule_epochs": "18"},
            "optimizer.schedule_epochs=18 is used when optimizer.scope=iteration",
        ),
        (
            {"optimizer.scope": "iteration", "optimizer.schedule_epochs": "1", "train.epochs": "2"},
            "optimizer.schedule_epochs=1 is below train.epochs=2",
        ),
    ],
)
def test_what_cannot_run_or_would_be_ignored_is_refused(base, override, problem):
    assert cfg.override(base, override, schema.COMPONENTS) == []
    assert problem in problems_of(base)


def set_numbers(base, **values):
    for path, value in values.items():
        base[path.split("__")[0]][path.split("__")[1]] = value


@pytest.mark.parametrize(
    ("batch", "micro", "suggested"), [(60, 1, 64), (64, 3, 72), (8, 2, 16), (1, 1, 8)]
)
def test_a_batch_the_mesh_does_not_divide_names_one_that_it_does(base, batch, micro, suggested):
    set_numbers(base, train__batch_size=batch, train__micro_batches=micro)
    assert f"train.batch_size={batch} must be a multiple of" in (message := problems_of(base, 8))
    assert message.endswith(f"x data x fsdp = {micro} x 8; try {suggested}")
    base.train.batch_size = suggested
    schema.check(base, 8)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"train.padding_free": "true"}, "needs train.max_token_len, the tokens of a micro-batch"),
        # The default prompt bucket and two responses of 512 tokens.
        ({"train.max_token_len": "1535"}, "holds no row of full length, a prompt and 2 responses"),
        ({"train.max_token_len": "1535"}, "1536 tokens; raise it to that"),
        ({"loss": "grpo", "train.max_token_len": "3071"}, "a prompt and 5 responses"),
        ({"train.max_token_len": "4096", "train.micro_batches": "2"}, "both cut a batch"),
        ({"data.completion_buckets": "(0,64)"}, "must be increasing positive integers"),
    ],
)
def test_a_cut_by_tokens_that_cannot_be_made_says_why(base, overrides, problem):
    assert cfg.override(base, overrides, schema.COMPONENTS) == []
    assert problem in problems_of(base)


@pytest.mark.parametrize(
    "overrides",
    [
        {"train.max_token_len": "1536", "train.padding_free": "true"},
        {"loss": "grpo", "train.max_token_len": "3072"},
        {"data.completion_buckets": "(64,128)"},
    ],
)
def test_a_cut_by_tokens_that_holds_the_longest_row_is_taken(base, overrides):
    assert cfg.override(base, overrides, schema.COMPONENTS) == []
    schema.check(base, 1)


def test_sampling_is_split_over_the_same_devices_but_not_over_tensor(base):
    base.sampling.batch_size = 12
    wanted = "must be a multiple of replica x data x fsdp = 8 of the sampling mesh; try 16"
    assert f"sampling.batch_size=12 {wanted}" in problems_of(base, 8)
    set_numbers(base, mesh__tensor=2)
    schema.check(base, 8)


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        ({"data": 3}, "needs 3 devices"),
        ({"data": -1, "fsdp": -1}, "at most one of them -1"),
        ({"data": 0}, "must be positive"),
        ({"fsdp": -2}, "must be positive"),
        ({"data": 16}, "this run has 8"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(base, mesh, words):
    set_numbers(base, **{f"mesh__{k}": v for k, v in mesh.items()})
    assert words in problems_of(base, 8)


def test_keys_values_types_mesh_and_file_are_all_reported_at_once(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        CONFIG
        + "    config.train.batch_size = 3\n    config.optimizer.warmup_ratio = 1.5\n    return"
        " config\n"
    )
    overrides = {
        "trian.epochs": "2",
        "seed": "x",
        "loss.beta": "nan",
        "loss.bta": "1",
        "oracle": "sentimet",
    }
    with pytest.raises(ConfigError) as error:
        schema.load(
            str(path), overrides | {"mesh.fsdp": "2", "sampling.batch_size": "3"}, devices=2
        )
    message = str(error.value)
    assert message.startswith("8 problem(s)")
    for words in (
        "--config.oracle=sentimet: 'sentimet' is not known; did you mean 'sentiment'?",
        "--config.trian.epochs: no such key; did you mean 'train.epochs'?",
        "--config.seed=x: expected a whole number",
        "--config.loss.bta: no such key; did you mean 'loss.beta'?",
        "loss.beta=nan: must be a finite number",
        "optimizer.warmup_ratio=1.5",
        "train.batch_size=3 must be a multiple",
        "sampling.batch_size=3 must be a multiple",
    ):
        assert words in message


def test_a_typo_or_wrong_type_in_a_config_file_is_told_by_line_with_the_nearest_key(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(CONFIG + "    config.train.epoch = 2\n    return config\n")
    told = r"c\.py:4: no such key 'epoch'; did you mean 'epochs'\? it has: iterations, "
    with pytest.raises(ConfigError, match=told):
        schema.load(str(path), {})
    path.write_text(CONFIG + "    config.train.epochs = 'two'\n    return config\n")
    with pytest.raises(ConfigError, match=r"c\.py:4: epochs=two: expected int, not str$"):
        schema.load(str(path), {})
    path.write_text(CONFIG + "    select(config, 'loss', 's_spo')\n    return config\n")
    with pytest.raises(
        ConfigError, match=r"c\.py:4: 's_spo' is not known; did you mean 's_sppo'\?"
    ):
        schema.load(str(path), {})


def test_a_value_of_another_kind_in_a_config_file_is_refused(tmp_path):
    path = tmp_path / "c.py"
    for line, told in (
        ("config.sampling.top_k = None", "sampling.top_k=None: expected a whole number, as in 0"),
        ("config.loss.beta = None", "loss.beta=None: expected a number, as in 0.001"),
        ("config.loss.name = None", "loss.name=None: expected str, as in 's_sppo'"),
        ("config.checkpoint.keep = True", "checkpoint.keep=True: expected a whole number"),
        ('config.data.prompt_buckets = (64, "a")', "data.prompt_buckets=(64, 'a'): expected"),
    ):
        path.write_text(f"{CONFIG}    {line}\n    return config\n")
        with pytest.raises(ConfigError, match=f"(?s)1 problem.*{re.escape(told)}"):
            schema.load(str(path), {})
    path.write_text(f"{CONFIG}    config.seed = None\n    return config\n")
    assert schema.load(str(path), {"seed": "3"}).seed == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config():\n    return 3\n", r"c\.py: get_config\(\) returns int; begin it with"),
        (
            "from ml_collections import ConfigDict as get_config\n",
            r"c\.py: get_config\(\) leaves out seed, model\.source, .*, \.\.\.; begin it with",
        ),
        ("x = '\udcff'\n", r"c\.py:1: SyntaxError: .*'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_file_that_makes_no_config_is_refused(tmp_path, text, message):
    path = tmp_path / "c.py"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        schema.load(str(path), {})


def test_checking_computes_nothing(base, monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    monkeypatch.setattr("jax._src.interpreters.pxla.MeshComputation.compile", None)
    schema.check(base, 8)
    with pytest.raises(TypeError):
        jax.jit(lambda x: x + 1)(1.0)  # the trap works


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"loss": "nash_md", "train.reference": "initial"},
            r"sampling\.num_samples=5: nash_md learns from one sample",
        ),
        (
            {"loss": "xpo", "sampling.num_samples": "2"},
            r"train\.reference=iteration: xpo's opponent .* set initial",
        ),
        (
            {"group.filter_groups": "true"},
            r"group\.filter_groups: s_sppo does not learn from groups",
        ),
        (
            {"loss": "sspo", "group.max_num_gen_batches": "3"},
            r"max_num_gen_batches=3 needs group\.filter_groups=true",
        ),
        (
            {"loss": "grpo", "advantage.scale_rewards": "grup"},
            r"advantage=grpo: .*scale_rewards='grup' must be one of",
        ),
        (
            {"loss": "sspo", "group.overlong_buffer_len": "513"},
            r"overlong_buffer_len=513 exceeds .*max_new_tokens=512",
        ),
    ],
)
def test_what_a_loss_learns_from_must_fit_the_other_keys(base, given, message):
    assert cfg.override(base, given, schema.COMPONENTS) == []
    assert re.search(message, problems_of(base))


TRL = {"devices": 1, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 8}
TRL |= {"num_generations": 8, "num_iterations": 1, "num_train_epochs": 2, "prompts": 96}
VERL = {"train_batch_size": 1024, "ppo_mini_batch_size": 256, "n": 8, "devices": 8}
VERL |= {"ppo_micro_batch_size_per_gpu": 16, "ppo_epochs": 1, "total_epochs": 15, "prompts": 7168}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        # TRL's defaults: 64 completions are 8 prompts, one optimizer step on all of them
        (
            TRL | {"steps_per_generation": 8, "generation_batch_size": 64},
            {"batch_size": 8, "prompts_per_iteration": 8, "micro_batches": 8, "iterations": 24},
        ),
        # 8 micro-steps of 8 x 4 completions a rollout, an optimizer step after every second
        (
            TRL
            | {"devices": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 8}
            | {"generation_batch_size": 256},
            {"batch_size": 8, "prompts_per_iteration": 32, "micro_batches": 2, "iterations": 6},
        ),
        # 1024 prompts a rollout, 4 steps on 256 x 8 responses in 16 parts of 8 x 16
        (
            VERL,
            {"batch_size": 256, "prompts_per_iteration": 1024, "micro_batches": 16}
            | {"iterations": 105},
        ),
    ],
)
def test_sizes_of_trl_and_verl_become_ours_by_the_table_and_by_the_page(theirs, ours):
    """TRL: generation_batch_size = per device x devices x steps_per_generation (grpo_config.py).
    verl: the mini-batch is in prompts and multiplied by n, the micro-batch is in responses."""
    page = (Path(__file__).parents[1] / "docs" / "coming_from.md").read_text()
    formulas = re.findall(r"^    train\.(\w+) += (.+)$", page, re.M)
    for answer in schema.ELSEWHERE.values():
        formulas += re.findall(r"^train\.(\w+) = (.*?)(?: \([a-zA-Z].*)?$", answer)
    known = theirs | {"epochs": 1} | ours
    checked = set()
    for key, formula in formulas:
        names = set(re.findall(r"\w+", formula.replace("train.", "")))
        if key in ours and names <= known.keys():
            code = formula.replace("train.", "").replace("×", "*").replace(" x ", " * ")
            assert eval(code, {}, known) == ours[key], (key, formula)
            checked.add(key)
    assert checked == ours.keys()


def test_max_steps_counts_optimizer_steps():
    """480 steps at 4 a rollout and 2 epochs, 8 of 32 prompts each, are 60 iterations."""
    formula = schema.ELSEWHERE["max_steps"].removeprefix("train.iterations = ").replace(" x ", "*")
    sizes = {"max_steps": 480, "batch_size": 8, "prompts_per_iteration": 32, "epochs": 2}
    assert eval(formula, {}, sizes) == 60


@pytest.mark.parametrize("name", sorted(schema.ELSEWHERE))
def test_names_of_other_frameworks_are_answered_with_ours(base, name):
    """The answer names keys that exist."""
    problem = cfg.override(base, {f"train.{name}": "1"}, schema.COMPONENTS, schema.ELSEWHERE)[0]
    keys = re.findall(r"[a-z]+\.[a-z_]+", problem.partition("here it is ")[2])
    group = schema.base_config()
    assert cfg.override(group, {"loss": "grpo"}, schema.COMPONENTS) == []
    assert keys and set(keys) <= set(cfg.flatten(group))
