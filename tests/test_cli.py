"""Every command, in this process, through main(argv)."""

import io
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ssppo_jax.training.train
from ssppo_jax import schema
from ssppo_jax.__main__ import main
from ssppo_jax.config import flatten, keyword_defaults
from ssppo_jax.errors import DataError, GateError, Interrupted
from ssppo_jax.weights import hf

REQUIRED = {
    "train": ("config", "workdir"),
    "evaluate": ("config", "candidate", "baseline"),
    "generate": ("config",),
    "chat": ("config",),
    "convert": ("input", "output"),
    "report": ("workdir",),
    "push": ("folder", "repo"),
    "runs": ("workdir",),
    "sweep": ("config", "workdir"),
    "plan": ("config", "topology"),
}
COMMANDS = tuple(REQUIRED)
CONFIGS = Path(__file__).parents[1] / "configs"
SMOKE = f"--config={CONFIGS / 'smoke.py'}"
SMALL = [
    SMOKE,
    "--config.train.micro_batches=1",  # 8 prompts on the 8 devices of the tests
    "--config.sampling.max_new_tokens=4",
    "--config.sampling.num_samples=2",
    "--config.data.prompt_buckets=256",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache of converted models for this file."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("SSPPO_CACHE", str(cache))
    monkeypatch.setenv("SSPPO_PROGRESS", "off")


@pytest.fixture
def trained(monkeypatch):
    """Calls of train() land here instead of training."""
    calls = []
    monkeypatch.setattr(
        ssppo_jax.training.train,
        "train",
        lambda *args, **how: calls.append((*args, how)) or {"n": 1},
    )
    monkeypatch.setattr(
        "ssppo_jax.runs.report.build.build_report", lambda workdir: workdir / "report.html"
    )
    return calls


def refused(capsys, *argv):
    """The message of a command line that must be refused as a configuration error."""
    assert main(list(argv)) == 78
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")
    return captured.err


# ---- the line itself -----------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_usage_names_every_command(capsys, argv):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^    {name} +\w", out, re.M) for name in COMMANDS)
    assert "embedded:smollm2" in out


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ssppo_jax {ssppo_jax.__version__}\n"


def test_an_unknown_command_is_refused_with_the_nearest_and_the_list(capsys):
    message = refused(capsys, "trian")
    assert "no command 'trian'; did you mean train? there is: train, fit, evaluate" in message


@pytest.mark.parametrize(
    ("argv", "missing"),
    [
        (["train"], "--config, --workdir"),
        (["train", SMOKE], "--workdir"),
        (["evaluate", SMOKE], "--candidate, --baseline"),
        (["generate"], "--config"),
        (["convert", "--output=x"], "--input"),
        (["report"], "--workdir"),
        (["sweep", "--dry-run"], "--config, --workdir"),
        (["plan", SMOKE], "--topology"),
    ],
)
def test_missing_options_are_all_named(capsys, argv, missing):
    message = refused(capsys, *argv)
    assert message == f"error: {argv[0]}: the following arguments are required: {missing}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_refused_with_those_there_are(capsys, command):
    needed = [f"--{flag}=x" for flag in REQUIRED[command]]
    message = refused(capsys, command, *needed, "--bogus=1")
    assert message.startswith(f"error: {command} takes no '--bogus=1'; ")
    assert f"it takes --help, --{REQUIRED[command][0]}" in message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        # no abbreviations: a new option would change their meaning
        (["train", SMOKE, "--workdir=x", "--work=x"], "takes no '--work=x'; did you mean --work"),
        (["train", SMOKE, "--workdir=x", "stray"], "takes no 'stray'"),
        (["train", "--workdir"], "argument --workdir: expected one argument"),
        (["report", "--workdir=a", "--workdir=b"], "argument --workdir: given twice; it takes one"),
        (["train", SMOKE, "--workdir=x", "--config.seed"], "write it as --config.seed=VALUE"),
        (
            ["train", SMOKE, "--workdir=x", "--config.seed=1", "--config.seed=2"],
            "--config.seed is given twice: 1 and 2",
        ),
        (
            ["convert", "--input=a", "--output=b", "--config.seed=1"],
            "convert takes no --config keys",
        ),
        (
            ["convert", "--input=a", "--output=b", "--dtype=int8"],
            "--dtype: invalid choice: 'int8' (choose from 'source', 'float32', 'bfloat16',"
            " 'float16')",
        ),
        (["report", "--workdir=a", "--config.seed=1"], "report takes no --config keys"),
        (["report", "--workdir=/no/such"], "no such folder; give the folder of a run"),
        (["sweep", SMOKE, "--workdir=x", "--jobs=0"], "--jobs: '0' must be a whole number from 1"),
        (
            ["sweep", SMOKE, "--workdir=x", "--jobs=two", "--dry-run"],
            "--jobs: 'two' must be a whole number",
        ),
    ],
)
def test_an_option_that_would_be_misread_or_ignored_is_refused(capsys, argv, words):
    assert words in refused(capsys, *argv)


def test_whoever_reads_the_output_may_leave_early(tmp_path):
    """`train --help | head -1`: the pipe breaks while the help is longer than its buffer."""
    command = [sys.executable, "-m", "ssppo_jax", "train", "--config=smoke", "--help"]
    quiet = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, env=quiet, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pipesize=4096
    ) as process:
        assert process.stdout.readline().startswith(b"usage: ")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_ctrl_c_ends_a_command_in_a_line(capsys, monkeypatch, tmp_path):
    def listing(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("ssppo_jax.runs.listing.list_runs", listing)
    assert main(["runs", f"--workdir={tmp_path}"]) == 130
    assert capsys.readouterr().err == "\nstopped by Ctrl-C\n"


def test_help_of_a_config_lists_every_key_with_that_configs_value(capsys):
    assert main(["train", SMOKE, "--config.loss=dpo", "--config.seed=7", "--help"]) == 0
    out = capsys.readouterr().out
    config = schema.load(str(CONFIGS / "smoke.py"), {"loss": "dpo"})
    assert re.findall(r"--config\.([\w.]+)=", out.split("config keys of")[1]) == [
        *(key.path for key in schema.KEYS),
        *(
            f"{c.path}.{leaf}"
            for c in schema.COMPONENTS
            for leaf in ("name", *keyword_defaults(c.table[flatten(config)[f"{c.path}.name"]]))
        ),
    ]
    assert (
        "--config.seed=7" in out
        and "--config.model.source=random:tiny" in out
        and "--config.loss.name=dpo" in out
    )
    assert main(["train", "--help"]) == 0
    assert "--config.model.source=embedded:smollm2" in capsys.readouterr().out


# ---- train ---------------------------------------------------------------------------------------


def test_train_gets_the_overridden_config_and_prints_the_result(capsys, trained, tmp_path):
    overrides = [
        "--config.train.micro_batches=1",
        "--config.loss.beta=0.25",
        "--config.oracle=sentiment",
    ]
    assert main(["train", SMOKE, f"--workdir={tmp_path / 'run'}", "--profile", *overrides]) == 0
    ((config, workdir, how),) = trained
    assert how["profile"] and set(how) == {"profile", "on_saved"}
    assert (
        workdir == tmp_path / "run"
        and config.loss.beta == 0.25
        and config.oracle.name == "sentiment"
    )
    assert capsys.readouterr().out.splitlines() == [
        '{"n": 1}',
        f"report: {tmp_path / 'run' / 'report.html'}",
    ]


def test_a_config_that_cannot_run_exits_78_with_every_problem_and_nothing_starts(
    capsys, trained, tmp_path
):
    bad = [
        "--config.trian.epochs=1",
        "--config.seed=x",
        "--config.loss.beta=-1",
        "--config.sampling.batch_size=3",
    ]
    message = refused(capsys, "train", SMOKE, f"--workdir={tmp_path / 'run'}", *bad)
    assert message.startswith("error: 5 problem(s)")
    for words in (
        "'train.epochs'?",
        "--config.seed=x",
        "loss keyword beta=-1.0",
        "sampling.batch_size=3",
        "train.batch_size=8",
    ):
        assert words in message
    assert trained == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (Interrupted(), 75, "stopped and saved; the same command continues"),
        (GateError("the gate"), 70, "error: the gate"),
        (DataError("f:1: bad"), 65, "error: f:1: bad"),
    ],
)
def test_each_way_to_end_has_its_exit_code(capsys, monkeypatch, tmp_path, error, code, words):
    def fail(config, workdir, profile, on_saved):
        raise error

    monkeypatch.setattr(ssppo_jax.training.train, "train", fail)
    command = ["train", SMOKE, "--config.train.micro_batches=1"]
    assert main([*command, f"--workdir={tmp_path}"]) == code
    assert words in capsys.readouterr().err
    if code == 75:
        assert main([*command, f"--workdir={tmp_path / 'new'}"]) == code
        assert "stopped before there was anything to save" in capsys.readouterr().err


PLACES = (
    ["train", *SMALL, "--workdir={}"],
    ["evaluate", *SMALL, "--candidate=random:tiny", "--baseline=random:tiny", "--output={}"],
    ["generate", *SMALL, "--output={}/x.jsonl"],
    ["convert", "--input=random:tiny", "--output={}/x"],
    ["compare", "--workdir=.", "--output={}"],
)


@pytest.mark.parametrize(
    "argv", [*PLACES, ["sweep", SMOKE, "--workdir={}"]], ids=lambda argv: argv[0]
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(capsys, tmp_path, argv):
    (tmp_path / "file").write_text("")
    message = refused(capsys, *(arg.format(tmp_path / "file") for arg in argv))
    assert "no folder can be made there" in message


@pytest.mark.parametrize("argv", [*PLACES, ["report", "--workdir={}"]], ids=lambda argv: argv[0])
def test_a_folder_that_is_read_only_is_refused_before_the_work(capsys, argv):
    """Root may write everywhere but into the lists of the kernel."""
    message = refused(capsys, *(arg.format("/proc/self/task") for arg in argv))
    assert re.search(r"/proc/self/task: no file can be written there \(.+\); give another", message)


def test_a_folder_in_place_of_the_file_of_responses_is_refused_before_the_work(capsys, tmp_path):
    message = refused(capsys, "generate", *SMALL, f"--output={tmp_path}")
    assert f"{tmp_path} is a folder; give a file, such as {tmp_path}/responses.jsonl" in message


@pytest.mark.parametrize(
    "argv",
    [
        ["generate", *SMALL, "--prompt=caf\udce9"],
        ["generate", *SMALL, "--config.data.source.name=caf\udce9"],
        ["train", *SMALL, "--workdir=caf\udce9"],
    ],
)
def test_an_argument_that_is_not_utf_8_is_refused(capsys, monkeypatch, tmp_path, argv):
    """The system hands over a byte that is no UTF-8 as half of a surrogate pair."""
    monkeypatch.chdir(tmp_path)
    assert "caf\\udce9' is not UTF-8; write it in UTF-8" in refused(capsys, *argv)


def test_an_argument_in_utf_8_is_read_as_such_where_the_locale_says_ascii(monkeypatch, tmp_path):
    calls = []

    def respond_into(output, config, texts, path, *, stopped):
        calls.append(texts)
        return 0

    monkeypatch.setattr("ssppo_jax.inference.generate.respond_into", respond_into)
    argument = "é".encode().decode("ascii", "surrogateescape")
    assert main(["generate", *SMALL, f"--prompt={argument}", f"--output={tmp_path}/x"]) == 0
    assert calls == [["é"]]


def test_responses_are_utf_8_on_standard_output_whatever_the_locale_says(monkeypatch):
    rows = [{"response": "é\u2028☕\ud83d"}]
    monkeypatch.setattr("ssppo_jax.inference.generate.respond", lambda config, texts, path: rows)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["generate", *SMALL]) == 0
    assert written.getvalue() == '{"response": "é\\u2028☕\\ud83d"}\n'.encode()


@pytest.mark.parametrize(
    "argv",
    [
        ["train", *SMALL, "--workdir=~nosuchuser/x"],
        ["generate", *SMALL, "--output=~nosuchuser/x"],
        ["generate", *SMALL, "--model=~nosuchuser/x"],
        ["convert", "--input=~nosuchuser/x", "--output=x"],
        ["report", "--workdir=~nosuchuser"],
    ],
    ids=lambda argv: " ".join(argv[::-1][:1] + argv[:1]),
)
def test_the_home_of_a_user_that_is_not_there_is_named(capsys, argv, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    message = refused(capsys, *argv)
    assert "begins with the home folder of a user who has none here" in message


def test_a_home_folder_is_found_behind_an_equals_sign(capsys, monkeypatch, trained, tmp_path):
    """A shell expands ~ at the start of a word alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--workdir=~/run"]) == 0
    assert trained[0][1] == tmp_path / "run"


def test_without_a_home_folder_the_cache_is_asked_for(capsys, monkeypatch, tmp_path):
    """A container's user without an entry in /etc/passwd, and no HOME."""

    def unknown(user):
        raise KeyError(user)

    monkeypatch.delenv("SSPPO_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    message = refused(capsys, "convert", "--input=random:tiny", "--output=x")
    assert "no folder for the cache is known; set SSPPO_CACHE to one, or HOME" in message


def test_a_start_that_failed_leaves_no_folder_and_the_corrected_command_runs(
    capsys, monkeypatch, tmp_path
):
    prompts = tmp_path / "in.jsonl"
    prompts.write_text('{"prompt": "x"}\noops\n')
    source = ["--config.data.source.name=jsonl", f"--config.data.source.path={prompts}"]
    argv = ["train", *SMALL, f"--workdir={tmp_path / 'run'}"]
    assert main([*argv, *source]) == 65
    assert "in.jsonl:2: not JSON" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    begun = []

    def reached(*args, **kwargs):
        begun.append(json.loads((tmp_path / "run/config.json").read_text()))
        raise GateError("the corrected command came this far")

    monkeypatch.setattr("ssppo_jax.training.evaluation.HeldOut", reached)
    assert main(argv) == 70
    assert begun[0]["config"]["data.source.name"] == "quickstart"
    assert not (tmp_path / "run").exists()


# ---- convert, generate, evaluate, report ---------------------------------------------------------


def test_convert_round_trips_to_the_bit_and_refuses_to_overwrite(capsys, cache, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["convert", "--input=random:tiny", f"--output={one}"]) == 0
    assert main(["convert", f"--input={one}", f"--output={two}"]) == 0
    assert capsys.readouterr().out == f"wrote {one}\nwrote {two}\n"
    (tiny,) = (f for f in cache.iterdir() if f.is_dir())
    weights = {folder: (folder / "model.safetensors").read_bytes() for folder in (tiny, one, two)}
    assert weights[tiny] == weights[one] == weights[two] and hf.read_arch(one) == hf.read_arch(two)
    assert (two / "tokenizer.json").is_file()
    assert "exists and is not empty" in refused(
        capsys, "convert", f"--input={one}", f"--output={two}"
    )
    half = tmp_path / "half"
    assert main(["convert", f"--input={one}", f"--output={half}", "--dtype=bfloat16"]) == 0
    sizes = [(f / "model.safetensors").stat().st_size for f in (half, one)]
    assert 0.4 < sizes[0] / sizes[1] < 0.6


def test_generate_answers_each_prompt_num_samples_times_as_json(capsys, cache, tmp_path):
    prompts = ["--prompt=Say hi.", "--prompt=Naïve ☕?"]
    assert main(["generate", *SMALL, *prompts]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["prompt"], r["sample"]) for r in rows] == [
        ("Say hi.", 0),
        ("Say hi.", 1),
        ("Naïve ☕?", 0),
        ("Naïve ☕?", 1),
    ]
    for row in rows:
        assert 1 <= len(row["tokens"]) == len(row["logp"]) <= 4 and max(row["logp"]) < 0
        assert row["finish"] == (
            "length" if len(row["tokens"]) == 4 and row["tokens"][-1] != 2 else "eos"
        )
    # The same prompt first in another list: its samples are addressed by the prompt, and land in
    # the file as well.
    (tiny,) = (f for f in cache.iterdir() if f.is_dir())
    other = [
        "--config.model.source=/nowhere",
        f"--model={tiny}",
        f"--output={tmp_path / 'new/out.jsonl'}",
    ]
    assert main(["generate", *SMALL, prompts[0], *other]) == 0
    written = [json.loads(line) for line in (tmp_path / "new/out.jsonl").read_text().splitlines()]
    assert written == rows[:2] and capsys.readouterr().out == ""


def test_an_empty_prompt_is_refused(capsys):
    assert main(["generate", *SMALL, "--prompt=Say hi.", "--prompt= "]) == 65
    assert "--prompt, prompt-1: " in capsys.readouterr().err


def test_evaluating_a_model_against_itself_gives_one_half_inside_the_interval(capsys, tmp_path):
    argv = [
        *SMALL,
        "--candidate=random:tiny",
        "--baseline=random:tiny",
        f"--output={tmp_path / 'out'}",
    ]
    wide = [
        "--config.data.heldout=64",
        "--config.eval.num_samples=1",
        "--config.eval.final_num_samples=2",
    ]
    assert main(["evaluate", *argv, *wide]) == 0
    result = json.loads((tmp_path / "out/evaluation.json").read_text())
    rate = result["win_rate"]
    assert rate["low"] <= 0.5 <= rate["high"] and abs(rate["mean"] - 0.5) < 0.1 and rate["n"] == 64
    assert (
        rate["low"] < rate["mean"] < rate["high"]
    )  # two random streams: not the same texts compared with themselves
    out = capsys.readouterr().out
    assert (
        f"win rate {rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}] (95% intervals over"
        " 64 prompts)" in out
    )
    texts = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert len(texts) == 64 * 2 * 2 and {t["stage"] for t in texts} == {"start", "final"}


def test_a_report_of_a_folder_without_a_run_is_refused(capsys, tmp_path):
    assert "is no run's folder" in refused(capsys, "report", f"--workdir={tmp_path}")
    assert not any(tmp_path.iterdir())


def test_report_of_a_run_folder_writes_one_page(capsys, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"config": {"loss.beta": 0.1}, "command": "x", "version": "0"})
    )
    row = {
        "step": 1,
        "iteration": 1,
        "phase": "evaluate",
        "win_rate": 0.6,
        "win_rate_low": 0.5,
        "win_rate_high": 0.7,
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["report", f"--workdir={tmp_path}"]) == 0
    page = Path(capsys.readouterr().out.removeprefix("report: ").strip())
    assert page.parent == tmp_path and "loss.beta" in page.read_text()


def test_sweep_lists_its_runs_and_passes_on_its_exit_code(capsys, monkeypatch, tmp_path):
    path = tmp_path / "grid.py"
    shutil.copy(CONFIGS / "smoke.py", path)
    path.write_text(path.read_text() + "\ndef sweep(add):\n    add({'loss.beta': 0.1})\n")
    argv = ["sweep", f"--config={path}", f"--workdir={tmp_path / 'out'}", "--config.seed=3"]
    assert main([*argv, "--dry-run"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert (
        "--config.seed=3" in line
        and "--config.loss.beta=0.1" in line
        and not (tmp_path / "out").exists()
    )
    monkeypatch.setattr("ssppo_jax.sweep.grid.TRAIN", ("false",))
    assert main(argv) == 1
    monkeypatch.setattr("ssppo_jax.sweep.run.sweep", lambda *args, jobs, **how: 10 * jobs)
    assert main([*argv, "--jobs=3"]) == 30
