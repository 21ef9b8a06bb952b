"""Every command, config key, config name and link that a document names exists."""

import re
import shlex
from pathlib import Path

import pytest

from ssppo_jax import schema
from ssppo_jax.__main__ import main
from ssppo_jax.benchmark import settings
from ssppo_jax.config import flatten, keyword_defaults
from ssppo_jax.types import Batch, Verdict

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("experiments/**/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("recipes/*.md"),
    ]
)
PAGES = [page for page in PAGES if "results" not in page.parts and page.name != "CHANGELOG.md"]
PLACEHOLDER = re.compile(r"<|=(FILE|NAME|VALUE|DIR)\b|\.KEY\b")
COMMAND = re.compile(r"python -m ssppo_jax ([^`\n]*)")
EVERY = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands(page):
    """The arguments of every command line of the package in a page, comments left out."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    found = [shlex.split(line, comments=True) for line in COMMAND.findall(text)]
    return [arguments for arguments in found if not PLACEHOLDER.search(" ".join(arguments))]


def known_keys():
    """Every key of a run or a benchmark, and every keyword of every component."""
    keys = set(flatten(schema.base_config())) | {key.path for key in settings.KEYS}
    for component in (*schema.COMPONENTS, *settings.COMPONENTS):
        for function in component.table.values():
            keys |= {f"{component.path}.{keyword}" for keyword in keyword_defaults(function)}
    return keys


def help_of(command, capsys):
    """What `python -m ssppo_jax COMMAND --help` prints."""
    try:
        main([*command, "--help"])
    except SystemExit as end:
        assert not end.code
    return capsys.readouterr().out


def test_there_are_commands_in_the_pages_people_start_from():
    for name in ("README.md", "docs/get_started.md", "docs/add/loss.md", "experiments/README.md"):
        assert (ROOT / name) in PAGES
    assert len(commands(ROOT / "README.md")) >= 3


@EVERY
def test_commands_name_what_exists(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for command, *arguments in commands(page):
        told = help_of([command], capsys)
        flags = [argument for argument in arguments if not argument.startswith("--config")]
        for flag in flags:
            assert flag == "--help" or re.match(r"--[a-z_-]+", flag)[0] in told, (command, flag)
        given = dict(
            argument.removeprefix("--config.").split("=", 1)
            for argument in arguments
            if argument.startswith("--config.")
        )
        spec = [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]
        if spec:
            config = schema.load(spec[0], given)
            meshes = (*config.mesh.values(), *config.sampling.mesh.values())
            if command in ("train", "fit") and max(meshes) < 2:
                schema.check(config, 1)


@EVERY
def test_keys_that_a_page_names_exist(page):
    known, nodes = known_keys(), {key.split(".")[0] for key in known_keys()}
    text = page.read_text()
    named = set(re.findall(r"--config\.([a-z_.]+[a-z_])=", text))
    named |= {
        key
        for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:=[^`]*)?`", text)
        if key.split(".")[0] in nodes and not key.endswith((".py", ".sh", ".md", ".json", ".jsonl"))
    }
    examples = {"loss.margin", "pairs.gate.start", "data.source.largest", "oracle.shortest"}
    modules = {path for path in named if is_module(path)}
    components = {component.path for component in schema.COMPONENTS}
    of_verl = {"data.train_batch_size", "data.max_response_length"}
    assert named - known - examples - modules - components - of_verl == set()


@EVERY
def test_configs_written_in_a_page_run(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        names = {}
        code = compile(block, str(page), "exec")
        if "def get_config" not in block:  # calls that train: tests/test_api.py makes them
            continue
        exec(code, names)
        names["get_config"]()
        if "sweep" in names:
            names["sweep"](add_to_quickstart)


def add_to_quickstart(point, label=""):
    """Check the keys of one point of a sweep, which is what a sweep does first."""
    schema.load("quickstart", {key: str(value) for key, value in point.items()})


def is_module(path):
    """Say if a dotted name is a module of the package, or something in one."""
    head = ROOT / "ssppo_jax" / path.replace(".", "/")
    return head.with_suffix(".py").is_file() or head.parent.with_suffix(".py").is_file()


@EVERY
def test_links_between_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_every_config_of_the_package_is_told_on_the_first_page():
    page = (ROOT / "docs" / "get_started.md").read_text()
    for file in (ROOT / "ssppo_jax" / "configs").glob("[a-z]*.py"):
        assert f"`{file.stem}`" in page


def test_every_loss_oracle_source_and_gate_is_told_on_its_page():
    pages = {
        "loss": "objectives",
        "advantage": "objectives",
        "oracle": "oracles",
        "data.source": "data",
        "pairs.gate": "gate_and_repulsion",
    }
    for component in schema.COMPONENTS:
        if component.path in pages:
            page = (ROOT / "docs" / f"{pages[component.path]}.md").read_text()
            entered = component.table.items()  # by other tests too, from files of their own
            own = [name for name, f in entered if f.__module__.startswith("ssppo_jax.")]
            assert own and [name for name in own if f"`{name}`" not in page] == []


def test_the_pages_on_the_records_name_every_field():
    loss = (ROOT / "docs" / "add" / "loss.md").read_text()
    assert [field for field in Batch._fields if f"batch.{field}`" not in loss] == []
    oracle = (ROOT / "docs" / "add" / "oracle.md").read_text()
    assert [field for field in Verdict._fields if f"`{field}`" not in oracle] == []


def test_every_example_is_shown_on_a_page_with_a_link_to_its_file():
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "add").glob("*.md"))
    for file in (ROOT / "docs" / "examples").glob("*.py"):
        assert f'--8<-- "{file.name}"' in pages and f"(../examples/{file.name})" in pages
