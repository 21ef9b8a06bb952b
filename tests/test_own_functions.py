"""Functions of a user's own file or of another package, chosen by name like the package's."""

import hashlib
import sys

import jax
import numpy as np
import pytest

from ssppo_jax import config as cfg
from ssppo_jax import schema
from ssppo_jax.config import Table, component, known, load_function, user_files
from ssppo_jax.data import SOURCES
from ssppo_jax.errors import ConfigError
from ssppo_jax.losses import ADVANTAGES, COMPANIONS, GATES, LOSSES, RATIO_GATES, ROWS, TIES
from ssppo_jax.optimizer import OPTIMIZERS, make_run_optimizer
from ssppo_jax.oracles import ORACLES
from ssppo_jax.types import Batch, Policy

LOSS = '''
import jax
from ssppo_jax.config import Positive
from ssppo_jax.losses.core import clean, sequence_sum, sum_terms, weighted_mean

ROWS, TIES = {rows!r}, {{"mine": "a tie"}}

def mine(policy, batch, *, slope: Positive = 2.0):
    """Return -log sigmoid(slope (r_w - r_l)).

    Args:
        slope: of the logistic function
    """
    policy, batch = clean(policy, batch)
    r = sequence_sum(policy.logp - batch.ref_logp, batch.mask)
    value = -jax.nn.log_sigmoid(slope * (r[:, 0] - r[:, 1]))
    return sum_terms({{"mine": weighted_mean(value, batch.weight)}})

def fails(policy, batch):
    return policy.logits

def number(policy, batch):
    return policy.logp.sum()
'''


@pytest.fixture
def loss_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(LOSS.format(rows="pair"))
    yield tmp_path / "mine.py"
    for table in (LOSSES, ROWS, TIES):  # other tests go through them
        for name in [name for name in table if ".py:" in name]:
            del table[name]


def test_a_loss_of_a_file_is_chosen_with_its_keywords_and_its_rows(loss_file):
    config = schema.load("smoke", {"loss.name": "mine.py:mine", "loss.slope": "3"})
    assert config.loss.slope == 3.0 and ROWS["mine.py:mine"] == "pair"
    assert TIES["mine.py:mine"] == "a tie"
    assert cfg.bind(LOSSES, config.loss).keywords == {"slope": 3.0}
    assert "of the logistic function" in schema.help_text(config)
    loss_file.write_text(LOSS.format(rows="group"))
    schema.load("smoke", {"loss.name": "mine.py:mine", "advantage.name": "grpo"})
    assert ROWS["mine.py:mine"] == "group"  # the file was read again
    loss_file.write_text(LOSS.format(rows="pair").replace("ROWS, TIES", "ROWS, TYPES"))
    schema.load("smoke", {"loss.name": "mine.py:mine"})
    assert "mine.py:mine" not in TIES


def test_a_file_is_run_as_python_runs_it(tmp_path, monkeypatch):
    """Annotations are values, unless the file itself says otherwise; no cache is left behind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("def f(x: int = 3):\n    return x\n")
    assert load_function("own.py:f").__annotations__ == {"x": int}
    assert [file.name for file in tmp_path.iterdir()] == ["own.py"]


def test_rows_of_no_kind_are_refused_each_time(loss_file):
    loss_file.write_text(LOSS.format(rows="pairs"))
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"mine\.py: ROWS = 'pairs'; allowed: pair, group"):
            schema.load("smoke", {"loss.name": "mine.py:mine"})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mine.py:miner", "mine.py defines no 'miner'; did you mean 'mine'? its functions are: "),
        ("mime.py:mine", "no file 'mime.py' in "),
        ("mime.py:mine", "did you mean 'mine.py'?"),
        ("mine.py", "'mine.py' is a file; name its function, as in mine.py:FUNCTION"),
        ("mine.py:ROWS", "'mine.py:ROWS' is of type str; it must be a function"),
        ("mine.py:fails", "loss=mine.py:fails: mine.py:20: AttributeError"),
        (
            "mine.py:number",
            "loss=mine.py:number: it returns an array of shape (); a loss returns (Mean",
        ),
        ("dpp", "'dpp' is not known; did you mean 'dpo'?"),
    ],
)
def test_a_mistake_is_told_before_anything_is_compiled(loss_file, name, told):
    with pytest.raises(ConfigError) as caught:
        schema.load("smoke", {"loss.name": name})
    assert told in str(caught.value)


RATIO_GATE = """
import jax.numpy as jnp
from ssppo_jax.losses.ratio_gates import Gated

def softer(u, temperature):
    return Gated(jnp.tanh(temperature * u) / temperature, 1.0 / jnp.cosh(temperature * u) ** 2)

def none(u, temperature):
    return None

def one(u):
    return u

def total(u, temperature):
    return Gated(u.sum(), u)

def fails(u, temperature):
    return u.logarithm()

def log(u, temperature):
    return Gated(jnp.log(u), jnp.ones_like(u))
"""


def test_a_ratio_gate_of_a_file_is_chosen_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gate.py").write_text(RATIO_GATE)
    chosen = {"loss.name": "sspo", "loss.sspo_gate": "gate.py:softer"}
    config = schema.load("smoke", chosen, 1)
    tokens, rows = np.ones((2, 2, 3), np.float32), np.ones(2, np.float32)
    advantage = np.array([[1, -1], [1, 0]], np.float32)
    fields = dict.fromkeys(("weight", "p_win", "similarity"), rows)
    fields |= dict.fromkeys(("win_rate", "target", "advantage"), advantage)
    fields |= dict.fromkeys(("old_logp", "ref_logp", "init_logp", "mask"), tokens)
    ids = np.ones((2, 5), np.int32), np.full(2, 5, np.int32), tokens.astype(np.int32)
    batch = Batch(*ids, **fields)
    policy = Policy(tokens * 1.5, tokens)
    own, _ = cfg.bind(LOSSES, config.loss)(policy, batch)
    # log-ratios of 1/2 at every token; two responses with A = 1, one with -1, one with 0
    up, down = np.exp(np.tanh(10 / 2) / 10), np.exp(np.tanh(12 / 2) / 12)
    assert own.result() == pytest.approx(-(2 * up - down) / 4, rel=1e-5)
    for gate, told in (
        ("none", "it returns a NoneType; a ratio gate is f(u, temperature) and returns Gated"),
        ("one", "takes 1 positional argument but 2 were given"),
        ("total", "for an array of shape (3, 2, 4) it returns one of shape (); a ratio gate is"),
        ("fails", "gate.py:18: AttributeError: "),
        ("log", "at u = -30.0 and temperature 10 it gives log_f = nan and slope = 1; both must"),
        ("softest", "gate.py defines no 'softest'; did you mean 'softer'?"),
        ("", "'arctn_log' is not known; did you mean 'arctan_log'? allowed: arctan, "),
    ):
        with pytest.raises(ConfigError) as caught:
            name = f"gate.py:{gate}" if gate else "arctn_log"
            schema.load("smoke", chosen | {"loss.sspo_gate": name}, 1)
        assert f"loss.sspo_gate={name}: " in str(caught.value)
        assert told in str(caught.value) and str(caught.value).startswith("1 problem(s)")
    for name in [name for name in RATIO_GATES if ".py:" in name]:
        del RATIO_GATES[name]


def test_a_file_that_exits_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("import sys\nsys.exit(3)\n")
    for key in ("loss.name", "oracle.name"):
        with pytest.raises(ConfigError, match=r"own\.py:2: SystemExit: 3"):
            schema.load("smoke", {key: "own.py:f"})


ONE = {"train.batch_size": "16", "train.prompts_per_iteration": "16"}  # fits eight devices
MISTAKES = """
import math
import jax.numpy as jnp
import optax
from ssppo_jax.losses.core import clean, sequence_sum, sum_terms, weighted_mean

def value(policy, batch):
    policy, batch = clean(policy, batch)
    r = sequence_sum(policy.logp - batch.ref_logp, batch.mask)
    return r[:, 1] - r[:, 0], batch.weight

def loss_of_pairs(policy, batch):
    v, w = value(policy, batch)
    return sum_terms({"x": weighted_mean(jnp.stack([v, v], 1), w)})

def plain_metric(policy, batch):
    v, w = value(policy, batch)
    loss, metrics = sum_terms({"x": weighted_mean(v, w)})
    return loss, metrics | {"acc": (v > 0).mean()}

def row_loss(policy, batch):
    loss, metrics = sum_terms({"x": weighted_mean(*value(policy, batch))})
    return loss._replace(total=value(policy, batch)[0]), metrics

def one_argument(batch): return batch.weight
def positional(policy, batch, margin=0.1): return batch.weight
def no_default(policy, batch, *, margin): return batch.weight
def unknown_type(policy, batch, *, margin: "Positve" = 0.1): return batch.weight
def none(similarity): 1 - similarity
def of_rows(reward): return reward.mean(axis=1)
def with_rate(): return optax.adam(1e-3)
def not_optax(): return lambda gradient: gradient
def one_number(similarity): return 0.5
def sums(similarity): return similarity.sum()
def flips(similarity): return 1 - 3 * similarity
def nan(similarity): return (0.1 - similarity) ** 0.5
def branches(similarity): return 1.0 if similarity < 0.5 else 0.0
def of_math(similarity): return math.exp(-similarity)
def reward(completions, **columns): return [0.0 for _ in completions]
"""


@pytest.mark.parametrize(
    ("key", "name", "told"),
    [
        ("loss", "loss_of_pairs", "loss=mine.py:loss_of_pairs: mine.py:14: "),
        ("loss", "plain_metric", "its metric 'acc' is an array of shape (); a metric is a Mean"),
        ("loss", "row_loss", "its totals and weights must be scalars, and one has shape"),
        ("loss", "one_argument", "it takes (batch); a loss is f(policy, batch, *, key=default)"),
        ("loss", "positional", "'margin' is not keyword-only, so it is no key of a config; put *,"),
        ("loss", "no_default", "its keyword 'margin' has no default"),
        ("loss", "unknown_type", "the annotations of unknown_type cannot be read: name 'Positve'"),
        ("pairs.gate", "none", "it returns a NoneType; a gate is f(similarity, *, key=default)"),
        ("pairs.gate", "one_number", "for an array of shape (3,) it returns an array of shape ()"),
        ("pairs.gate", "sums", "for an array of shape (3,) it returns an array of shape ()"),
        ("pairs.gate", "flips", "at a similarity of 1.00 it gives -2; a gate gives 0 (a tie) to 1"),
        ("pairs.gate", "nan", "at a similarity of 1.00 it gives nan"),
        ("pairs.gate", "branches", "; use jax.numpy, and jnp.where in place of if"),
        ("pairs.gate", "of_math", "; use jax.numpy, and jnp.where in place of if"),
        ("advantage", "of_rows", "for an array of shape (3, 2) it returns an array of shape (3,)"),
        ("oracle", "reward", "a reward function is chosen by oracle.name=python and oracle.func"),
        ("data.source", "one_argument", "a source is f(*, key=default) and returns a list of"),
    ],
)
def test_a_function_that_breaks_its_contract_is_told_what_the_contract_is(
    loss_file, key, name, told
):
    loss_file.write_text(MISTAKES)
    try:
        with pytest.raises(ConfigError) as caught:
            schema.load("smoke", ONE | {f"{key}.name": f"mine.py:{name}"}, jax.device_count())
    finally:
        for table in (ADVANTAGES, GATES, ORACLES, SOURCES):
            table.pop(f"mine.py:{name}", None)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "with_rate",
            "for a gradient of 1 its update is -0.001, which the rate would turn uphill",
        ),
        ("not_optax", "it returns a function and no optax transformation; return the direction"),
    ],
)
def test_an_optimizer_that_would_go_uphill_is_refused(loss_file, name, told):
    loss_file.write_text(MISTAKES)
    try:
        config = schema.load("smoke", {"optimizer.name": f"mine.py:{name}"})
        with pytest.raises(ConfigError) as caught:
            make_run_optimizer(config, jax.random.key(0))
    finally:
        OPTIMIZERS.pop(f"mine.py:{name}", None)
    assert told in str(caught.value)


def test_a_loss_of_opponent_rows_has_the_share_of_the_reference(loss_file):
    loss_file.write_text(LOSS.format(rows="opponent"))
    rows = {"loss.name": "mine.py:mine", "sampling.num_samples": "2", "train.reference": "initial"}
    with pytest.raises(ConfigError, match=r"give it one, as in mixture_coef: float = 0\.5"):
        schema.load("smoke", ONE | rows, jax.device_count())
    with_share = LOSS.format(rows="opponent").replace("= 2.0", "= 2.0, mixture_coef: float = 0.5")
    loss_file.write_text(with_share)
    schema.load("smoke", ONE | rows, jax.device_count())


def test_a_companion_that_is_no_key_is_told(loss_file):
    loss_file.write_text(
        LOSS.format(rows="pair") + 'COMPANIONS = {"mine": {"train.refrence": "initial"}}'
    )
    with pytest.raises(ConfigError, match=r"COMPANIONS of mine\.py:mine sets 'train\.refrence'"):
        schema.load("smoke", {"loss.name": "mine.py:mine"})
    COMPANIONS.pop("mine.py:mine", None)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("config.loss.name = 'dpo'", 'write select(config, "loss", "dpo"), of ssppo_jax.schema'),
        ("config.loss.name = 'dpp'", "'dpp' is not known; did you mean 'dpo'?"),
        ("config.pairs.gate.name = 'threshold'", "its keywords (cutoff) are missing"),
    ],
)
def test_a_name_that_a_config_file_sets_by_hand_is_told_how_it_is_chosen(tmp_path, line, told):
    head = (
        "from ssppo_jax.schema import base_config\ndef get_config():\n    config = base_config()\n"
    )
    (tmp_path / "c.py").write_text(f"{head}    {line}\n    return config\n")
    with pytest.raises(ConfigError) as caught:
        schema.load(str(tmp_path / "c.py"), {})
    assert told in str(caught.value)


def test_a_file_that_raises_is_named_with_its_line(loss_file):
    loss_file.write_text("import jax\n\njax.nothing\n")
    with pytest.raises(ConfigError, match=r"mine\.py:3: AttributeError"):
        load_function("mine.py:mine")
    loss_file.write_text("def mine(:\n")
    with pytest.raises(ConfigError, match=r"mine\.py:1: SyntaxError"):
        load_function("mine.py:mine")


def test_the_users_files_of_a_config_are_digested(loss_file):

    loss_file.write_text(LOSS.format(rows="pair"))
    config = schema.load("smoke", {"loss.name": "mine.py:mine"})
    wanted = hashlib.sha256(loss_file.read_bytes()).hexdigest()
    assert user_files(config) == {"mine.py": wanted}
    assert user_files(schema.load("smoke", {})) == {}
    members = '[{"oracle": "python", "function": "mine.py:mine"}]'
    assert user_files({"members": members}) == {"mine.py": wanted}


PLUGIN = "def theirs(x, *, slope=2.0):\n    return x * slope\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with entry points, as pip leaves it."""
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    points = "theirs = theirs_losses:theirs\ndpo = theirs_losses:theirs\nbroken = theirs_broken:x\n"
    (info / "entry_points.txt").write_text(f"[ssppo_jax.losses]\n{points}")
    (tmp_path / "theirs_losses.py").write_text(PLUGIN)
    (tmp_path / "theirs_broken.py").write_text("import not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("theirs_losses", None)


def test_an_entry_point_of_a_package_enters_when_it_is_chosen(package):
    heard = []
    table = Table({"dpo": lambda x, *, beta=0.1: x}, "losses")
    table.entered.append(lambda name, module: heard.append((name, module.__name__)))
    assert known(table) == ["broken", "dpo", "theirs"] and list(table) == ["dpo"]
    assert component(table, "theirs", slope=3.0).slope == 3.0
    assert heard == [("theirs", "theirs_losses")] and table["theirs"](2) == 4.0
    assert component(table, "dpo").beta == 0.1  # a name of the package is not replaced
    with pytest.raises(ConfigError, match=r"'broken' is a plug-in of theirs .*not_installed"):
        component(table, "broken")


def test_a_loss_of_a_file_has_its_value_by_hand(loss_file):
    config = schema.load("smoke", {"loss.name": "mine.py:mine", "loss.slope": "1.5"})
    from ssppo_jax.types import Batch, Policy

    logp = np.array([[[-1.0, -2.0], [-3.0, 0.0]]], np.float32)
    mask = np.array([[[1, 1], [1, 0]]], np.float32)
    pair, row = np.full((1, 2), 0.5, np.float32), np.ones(1, np.float32)
    fields = dict.fromkeys(("old_logp", "ref_logp", "init_logp"), np.zeros_like(logp))
    fields |= dict.fromkeys(("win_rate", "target", "advantage"), pair)
    fields |= dict.fromkeys(("p_win", "similarity", "weight"), row)
    tokens = np.zeros((1, 2, 2), np.int32)
    batch = Batch(tokens[:, 0], np.ones(1, np.int32), tokens, mask, **fields)
    policy = Policy(logp, np.ones((1, 2, 3), np.float32))
    mean, _ = jax.jit(cfg.bind(LOSSES, config.loss))(policy, batch)
    # r_w = -3, r_l = -3: -log sigmoid(0)
    assert float(mean.result()) == pytest.approx(np.log(2), rel=1e-6)
