"""Provide the configuration machinery: keys, components by name, overrides, all errors at once.

A run's keys are written once, as `Key(path, default, meaning, rule)`. A *component* is a plain
function in a dict. `inspect` reads its keyword-only defaults as config defaults, so adding a
function adds its keys. A keyword's rule stands in its annotation: `decay: Unit = 0.99`, or
`Annotated[int, positive]`.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import linecache
import math
import pkgutil
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple, get_type_hints

from ml_collections import ConfigDict

from ssppo_jax.errors import ConfigError, UserError

Rule = Callable[[Any], str | None]  # value -> what is allowed, or None when the value is fine


class Key(NamedTuple):
    path: str
    default: Any
    meaning: str
    rule: Rule | None = None


class Component(NamedTuple):
    """Describe a node that selects a function from a table: `<path>.name` plus the function's
    keywords.

    Keys of the run may stand in the same node; they stay when another function is chosen.
    """

    path: str
    table: Mapping[str, Callable]
    default: str
    meaning: str


# ---- tables --------------------------------------------------------------------------------------

OWN = re.compile(r"(?P<file>[^\s,'\"]+\.py):(?P<name>\w+)")  # path/to/file.py:function


class Table(dict[str, Callable]):
    """Hold a room's functions by name. Functions from elsewhere enter when they are chosen.

    A plug-in is an entry point that an installed package has in the group `ssppo_jax.losses` (or
    `oracles`, `sources`, ...). A function of a user's file is named path/to/file.py:function. A
    name that the package has is not replaced.
    """

    def __init__(self, found: Mapping[str, Callable], group: str):
        super().__init__(found)
        self.group = group
        self.entered: list[Callable[[str, ModuleType], None]] = []  # called with each newcomer

    @functools.cached_property
    def plugins(self) -> dict[str, importlib.metadata.EntryPoint]:
        """Return the entry points of installed packages by name."""
        found = importlib.metadata.entry_points(group=f"ssppo_jax.{self.group}")
        return {point.name: point for point in found if point.name not in self}

    def enter(self, name: str) -> None:
        """Enter the plug-in, or the function of a user's file, that a name means; else nothing."""
        own = OWN.fullmatch(name)
        if own:
            function = load_function(name)
        elif name not in self and name in self.plugins:
            function = _plugin(self.plugins[name])
        else:
            return
        if self.get(name) is not function:
            self[name] = function
            for hear in self.entered:
                hear(name, sys.modules[function.__module__])


def _plugin(point: importlib.metadata.EntryPoint) -> Callable:
    try:
        return point.load()
    except Exception as error:  # whatever another package can raise
        package = point.dist.name if point.dist else "a package"
        raise ConfigError(
            f"{point.name!r} is a plug-in of {package} ({point.value}), which does not load:"
            f" {type(error).__name__}: {error}"
        ) from error


def expanded(path: str) -> Path:
    """Return a path with ~ and ~user replaced by the home folder.

    Raises:
      ConfigError: there is no such user, or no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{path!r} begins with the home folder of a user who has none here; give a whole path"
        ) from None


def load_function(spec: str) -> Callable:
    """Return the function that path/to/file.py:name means (`load_object`)."""
    made = load_object(spec)
    if not callable(made):
        raise ConfigError(f"{spec!r} is of type {type(made).__name__}; it must be a function")
    return made


def load_object(spec: str) -> Any:
    """Return what path/to/file.py:name means. A file that changed is read again.

    Raises:
      ConfigError: no such file, it raised something (file:line and what), or nothing in it has the
        name.
    """
    file, _, name = spec.rpartition(":")
    path = expanded(file)
    if OWN.fullmatch(spec) is None:
        raise ConfigError(f"{spec!r}: write it as path/to/file.py:NAME")
    if not path.is_file():
        near = _nearest(path.name, [p.name for p in path.parent.glob("*.py")])
        raise ConfigError(
            f"{spec!r}: no file {file!r} in {Path.cwd()}{'; ' + near.strip() if near else ''}"
        )
    module = _user_module(str(path.resolve()), file_digest(path))
    if not hasattr(module, name):
        own = [x for x in vars(module).values() if getattr(x, "__module__", "") == module.__name__]
        given = [x.__name__ for x in own if inspect.isfunction(x) and x.__name__[0] != "_"]
        raise ConfigError(
            f"{spec!r}: {file} defines no {name!r}; {_nearest(name, given)}its functions are:"
            f" {', '.join(given) or 'none'}"
        )
    return getattr(module, name)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def _user_module(path: str, digest: str) -> ModuleType:
    name = f"_user_{Path(path).stem}_{digest[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # its name ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look it up
    run_file(module, spec.loader.exec_module, module)
    return module


def user_files(config: Mapping[str, Any]) -> dict[str, str]:
    """Return {file: SHA-256} of the user's Python files that a config's values name."""
    values = flatten(config).values() if isinstance(config, ConfigDict) else config.values()
    texts = [value for value in values if isinstance(value, str)]
    named = sorted({match["file"] for text in texts for match in OWN.finditer(text)})
    return {file: file_digest(expanded(file)) for file in named if expanded(file).is_file()}


def entry(table: Mapping[str, Callable], name: str) -> Callable:
    """Return the function of a name; one from elsewhere enters the table.

    Raises:
      ConfigError: no such name; the nearest one is named.
    """
    if isinstance(table, Table) and name not in table:
        table.enter(name)
    if name not in table:
        if name.endswith(".py"):
            raise ConfigError(f"{name!r} is a file; name its function, as in {name}:FUNCTION")
        more = _own_too(table)
        raise ConfigError(
            f"{name!r} is not known; {_nearest(name, known(table))}allowed:"
            f" {', '.join(known(table))}{more}"
        )
    return table[name]


def known(table: Mapping[str, Callable]) -> list[str]:
    """Return the names of a table, plug-ins included."""
    return sorted({*table, *(table.plugins if isinstance(table, Table) else ())})


def _own_too(table: Mapping[str, Callable]) -> str:
    """Return what a list of a table's names ends with."""
    return "; or path/to/file.py:FUNCTION" if isinstance(table, Table) else ""


# ---- rules ---------------------------------------------------------------------------------------


def positive(x) -> str | None:
    return None if x > 0 else "a number above 0"


def non_negative(x) -> str | None:
    return None if x >= 0 else "0 or more"


def unit(x) -> str | None:
    return None if 0 <= x <= 1 else "between 0 and 1"


def fraction(x) -> str | None:
    return None if 0 < x <= 1 else "above 0 and at most 1"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Allow some values; `--help` lists them."""

    allowed: tuple

    def __call__(self, x: Any) -> str | None:
        return None if x in self.allowed else "one of " + ", ".join(map(repr, self.allowed))


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Check by another rule; a message does not show the value, which may hold a password."""

    rule: Rule

    def __call__(self, x: Any) -> str | None:
        return self.rule(x)


def one_of(*allowed) -> Rule:
    return OneOf(allowed)


def increasing(x) -> str | None:
    ok = len(x) > 0 and all(v > 0 for v in x) and list(x) == sorted(set(x))
    return None if ok else "increasing positive integers, e.g. (64,128,256)"


def iso_date(x) -> str | None:
    try:
        ok = datetime.date.fromisoformat(x).isoformat() == x
    except ValueError:
        ok = False
    return None if ok else "a date, such as 2024-07-26"


Unit = Annotated[float, unit]
Positive = Annotated[float, positive]
NonNegative = Annotated[float, non_negative]


# ---- components ----------------------------------------------------------------------------------


def keyword_defaults(function: Callable) -> dict[str, Any]:
    """Return a function's keyword-only parameters that have a default: its hyper-parameters."""
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }


def keyword_rules(function: Callable) -> dict[str, Rule]:
    """Return the rule of every keyword whose annotation carries one, as `Unit` does."""
    names = keyword_defaults(function)
    try:
        hints = get_type_hints(function, include_extras=True) if names else {}
    except Exception as error:  # whatever an annotation of a user's function can raise
        name = getattr(function, "__qualname__", repr(function))
        raise ConfigError(
            f"the annotations of {name} cannot be read: {error}; import what they name, or write"
            " plain types such as float"
        ) from error
    found = {name: getattr(hints.get(name), "__metadata__", ()) for name in names}
    return {name: rules[0] for name, rules in found.items() if rules}


def keyword_meanings(function: Callable) -> dict[str, str]:
    """Read the `name: meaning` lines of the `Args:` section of a Google-style docstring."""
    doc = inspect.getdoc(function) or ""
    section = re.split(r"\n(?=\S)", doc.partition("Args:\n")[2])[0]
    found, current = {}, None
    for line in textwrap.dedent(section).splitlines():
        match = re.match(r"(\w+)(?: \([^)]*\))?: (.*)", line)
        if match:
            current = match[1]
            found[current] = match[2].strip()
        elif current and line.strip():
            found[current] += " " + line.strip()
    return found


def component(table: Mapping[str, Callable], name: str, /, **overrides) -> ConfigDict:
    """Return a node with `name` and the function's keyword defaults, some of them overridden.

    Raises:
      ConfigError: no such name, or no such keyword; the nearest one is named.
    """
    if isinstance(table, Table):
        table.enter(name)  # a file that changed is read again where it is chosen
    function = entry(table, name)
    defaults = keyword_defaults(function)
    check_keywords(name, function)
    unknown = [k for k in overrides if k not in defaults]
    if unknown:
        raise ConfigError(
            f"{name} takes no {unknown[0]!r}; {_nearest(unknown[0], defaults)}it takes:"
            f" {', '.join(defaults)}"
        )
    for keyword, value in overrides.items():
        default = defaults[keyword]
        same = isinstance(value, type(default)) and isinstance(value, bool) == isinstance(
            default, bool
        )
        if not (default is None or same or (isinstance(default, float) and type(value) is int)):
            raise ConfigError(
                f"{name} takes {keyword}={value!r}: expected {_type_name(default)}, as in"
                f" {default!r}"
            )
    node = ConfigDict({"name": name, **defaults, **overrides})
    return node.lock()


def check_keywords(name: str, function: Callable) -> None:
    """Check that every setting of a function can be a key of a config.

    Raises:
      ConfigError: a setting has no default, a default of None, or is not keyword-only.
    """
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty:
            raise ConfigError(
                f"{name}: its keyword {p.name!r} has no default, so it cannot be a key of a config;"
                f" give it one in the function, as in {p.name}: float = 1.0"
            )
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty and OWN.fullmatch(name):
            raise ConfigError(
                f"{name}: {p.name!r} is not keyword-only, so it is no key of a config; put *,"
                f" before it, as in (..., *, {p.name}={p.default!r})"
            )


def by_hand(config: ConfigDict, components: Iterable[Component]) -> list[str]:
    """List the components whose name a config file sets without choosing them by `select`."""
    problems = []
    for c in components:
        node = _parent(config, c.path)[_leaf(c.path)]
        try:
            check_keywords(node.name, entry(c.table, node.name))
            wanted = keyword_defaults(c.table[node.name])
        except ConfigError as error:
            problems.append(f"{c.path}={node.name}: {error}")
            continue
        if lacking := [name for name in wanted if name not in node]:
            problems.append(
                f"{c.path}.name={node.name!r} is set by hand, so its keywords"
                f" ({', '.join(lacking)}) are missing; write"
                f' select(config, "{c.path}", "{node.name}"), of ssppo_jax.schema'
            )
    return problems


def call_kwargs(table: Mapping[str, Callable], node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that a component node holds for its function."""
    return {name: node[name] for name in keyword_defaults(entry(table, node["name"]))}


def bind(table: Mapping[str, Callable], node: Mapping[str, Any]) -> Callable:
    """Return the function that a component node selects, with the configured keywords bound.

    This is the one place where a configured keyword reaches its function.
    """
    return functools.partial(entry(table, node["name"]), **call_kwargs(table, node))


def build(keys: Iterable[Key], components: Iterable[Component]) -> ConfigDict:
    """Return a locked config with every key at its default."""
    config = ConfigDict()
    for c in components:
        _parent(config, c.path, create=True)[_leaf(c.path)] = component(c.table, c.default).unlock()
    for key in keys:
        _parent(config, key.path, create=True)[_leaf(key.path)] = key.default
    return config.lock()


def choose(
    config: ConfigDict, path: str, table: Mapping[str, Callable], name: str, /, **overrides
) -> None:
    """Put a component with its own defaults at `path`; keep the run's keys in that node."""
    node, parent = component(table, name, **overrides), _parent(config, path)
    old = parent[_leaf(path)]
    replaced = {"name", *keyword_defaults(table[old.name])}
    with node.unlocked():
        node.update({key: value for key, value in old.items() if key not in replaced})
    with parent.unlocked():
        del parent[_leaf(path)]
        parent[_leaf(path)] = node


def assign(config: ConfigDict, components: Iterable[Component], path: str, value: Any) -> None:
    """Set one key; the name of a component chooses it with its own defaults."""
    chosen = next((c for c in components if path == f"{c.path}.name"), None)
    if chosen is None:
        _parent(config, path)[_leaf(path)] = value
    elif flatten(config)[path] != value:
        choose(config, chosen.path, chosen.table, value)


def _parent(config: ConfigDict, path: str, create: bool = False) -> ConfigDict:
    node = config
    for part in path.split(".")[:-1]:
        if create and part not in node:
            node[part] = ConfigDict()
        node = node[part]
    return node


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _nearest(given: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""


# ---- names of earlier releases; an empty one is gone ---------------------------------------------

RENAMED = {
    "optim.transform": "optimizer",
    "optim": "optimizer",
    "pairs.semantic_gate": "pairs.gate_level",
    "model.repulsion_layer": "loss.repulsion_layer",
    "model.repulsion_pooling": "loss.repulsion_pooling",
    "model.kernels": "",
    "judge": "oracle",
    "train.initial_policy": "train.reference_storage",
    "hosts": "distributed",
    "data.source.field": "data.source.prompt_field",
}


# ---- loading and overriding ----------------------------------------------------------------------


CONFIGS = Path(__file__).parent / "configs"  # the package's own, named without a path


def config_names() -> list[str]:
    """Return the names of the package's own configs."""
    return sorted(file.stem for file in CONFIGS.glob("*.py") if file.stem != "__init__")


def load_config(spec: str) -> ConfigDict:
    """Call get_config() of the file that `spec` names; with `spec:argument`, get_config(argument).

    A spec is the name of one of the package's configs (`quickstart`), a path (`mine/config.py`), or
    an importable module (`my_package.config`).

    Raises:
      ConfigError: no such file, no get_config in it, or the file itself raised something: file:line
        and what.
    """
    module, argument = load_module(spec), spec.partition(":")[2]
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config={spec}: it defines no get_config(); a config file must")
    config = run_file(module, module.get_config, *([argument] if argument else []))
    if config is None:
        raise ConfigError(f"--config={spec}: get_config() returns nothing; end it: return config")
    return config


def load_module(spec: str) -> ModuleType:
    """Execute the Python file of a config spec and return its module.

    Raises:
      ConfigError: no such file, or the file itself raised something: file:line and what.
    """
    path = _config_file(spec)
    module_spec = importlib.util.spec_from_file_location("_config_" + Path(path).stem, path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"--config={spec}: {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(module_spec)
    run_file(module, module_spec.loader.exec_module, module)
    return module


def _config_file(spec: str) -> str:
    """Return the file that a spec names: one of the package's configs, a path, or a module."""
    given = spec.partition(":")[0]
    if given in config_names():
        return str(CONFIGS / f"{given}.py")
    if Path(given).is_file():
        return given
    names = ", ".join(config_names())
    if given.endswith(".py") or "/" in given:
        folder = Path(given).parent
        known = [str(p) for p in sorted(folder.glob("*.py"))] if folder.is_dir() else []
        if not known and Path(given).stem in config_names():
            raise ConfigError(
                f"--config={spec}: no file {given!r}; the package has one:"
                f" --config={Path(given).stem}"
            )
        raise ConfigError(
            f"--config={spec}: no file {given!r}; {_nearest(given, known)}found there: "
            f"{', '.join(known) or 'nothing'}. The package's own are named without a path: {names}"
        )
    try:
        found = importlib.util.find_spec(given)
    except (ImportError, ValueError):
        found = None
    if found is None or found.origin is None or not found.has_location:
        raise ConfigError(
            f"--config={spec}: no such config; {_nearest(given, config_names())}the package has"
            f" {names}; or give the path of a Python file, or an importable module"
        )
    return found.origin


def run_file(module: ModuleType, function: Callable, *arguments) -> Any:
    """Call function(*arguments) and report an error of the config file with the file's own line."""
    try:
        return function(*arguments)
    except Exception as error:  # whatever a user's file can raise
        file = str(module.__file__)
        line = _line_of(error, file)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        said = _refused(str(error)) or f"{kind}{error}"
        raise ConfigError(f"{place_of(error, file)}{said}{_renamed_in(file, line)}") from error


def _refused(text: str) -> str:
    """Return what ml_collections says of an unknown key or of a value of another type, in the words
    of the command line; "" if it is neither."""
    unknown = re.search(r'Key "(\w+)" does not exist and cannot be added', text)
    if unknown:
        there = re.findall(r"'(\w+)\\?': ", text)
        return (
            f"no such key {unknown[1]!r}; {_nearest(unknown[1], there)}it has: {', '.join(there)}"
        )
    other = re.search(
        r"Could not override field '(\w+)'.*?\. (.*) is of original type <class '(\w+)'> and"
        r" cannot be casted to type <class '(\w+)'>",
        text,
        re.DOTALL,
    )
    return f"{other[1]}={other[2]}: expected {other[4]}, not {other[3]}" if other else ""


def place_of(error: Exception, file: str) -> str:
    """Return "file:line: " of the line of a user's file that an error went through."""
    line = _line_of(error, str(expanded(file).resolve())) or _line_of(error, file)
    return file + (f":{line}" if line else "") + ": "


def _line_of(error: Exception, file: str) -> int | None:
    frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return error.lineno if isinstance(error, SyntaxError) else (frames or [None])[-1]


def renamed(path: str) -> str | None:
    """Return the present name of a key of an earlier release; None if it never had another."""
    for old, new in RENAMED.items():
        if path == old or path.startswith(old + "."):
            return new + path[len(old) :] if new else new
    return None


def _renamed_in(file: str, line: int | None) -> str:
    """Say what the keys of an earlier release are called that a line of a config file uses."""
    text = linecache.getline(file, line) if line else ""
    names = re.findall(r"[a-z_]+\.([a-z_]+(?:\.[a-z_]+)*)", text)  # behind the config's variable
    found = [(old, renamed(old)) for old in names]
    return "".join(f"; {old} is now {new}" for old, new in found if new)


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value} of every leaf."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def override(
    config: ConfigDict,
    overrides: Mapping[str, str],
    components: Iterable[Component],
    elsewhere: Mapping[str, str] | None = None,
    chosen: Callable[[ConfigDict, str, str], None] | None = None,
) -> list[str]:
    """Apply `a.b=text` overrides in place and return every problem found.

    Component names are applied first (a newly named component starts from its own defaults), then
    the other keys, so the order on the command line does not matter. `elsewhere` says where other
    frameworks' names of a key stand here; `chosen(config, path, name)` chooses a component where
    that takes more than its own node."""
    by_path = {c.path: c for c in components}
    problems, rest, refused = [], {}, []
    loss_first = sorted(overrides.items(), key=lambda item: item[0] != "loss.name")
    for path, text in loss_first:  # a loss may bring other keys
        base = path.removesuffix(".name")
        if base in by_path:
            try:
                if chosen is None:
                    choose(config, base, by_path[base].table, text)
                else:
                    chosen(config, base, text)
            except ConfigError as e:
                problems.append(f"--config.{path}={text}: {e}")
                refused.append(base + ".")
        else:
            rest[path] = text
    known = flatten(config)
    for path, text in rest.items():
        if path.startswith(tuple(refused)):  # its keywords are not known; its name is reported
            continue
        if path not in known:
            nearest = _nearest(path, known) or "train --config=FILE --help lists them"
            nearest = _of_another(config, by_path, path) or nearest
            if elsewhere and _leaf(path) in elsewhere:
                nearest = f"here it is {elsewhere[_leaf(path)]}"
            if renamed(path) is not None:
                nearest = (
                    f"it is now --config.{renamed(path)}={text}" if renamed(path) else "it is gone"
                )
            problems.append(f"--config.{path}: no such key; {nearest.strip()}")
            continue
        try:
            value = parse_value(text, known[path])
        except ValueError as e:
            problems.append(f"--config.{path}={text}: {e}")
            continue
        _parent(config, path)[_leaf(path)] = value
    return problems


def _of_another(config: ConfigDict, by_path: Mapping[str, Component], path: str) -> str:
    """Say which components of a kind have this keyword, where the chosen one has not."""
    base, _, keyword = path.rpartition(".")
    if base not in by_path:
        return ""
    node = _parent(config, path)
    table, own = by_path[base].table, [key for key in node if key != "name"]
    having = [n for n in known(table) if n in table and keyword in keyword_defaults(table[n])]
    if not having:
        near = _nearest(keyword, own).replace("'", f"'{base}.", 1)
        return near or f"{base}.name={node.name} takes: {', '.join(own) or 'no keys'}"
    return (
        f"{base}.name={node.name} does not take it, {', '.join(having)}"
        f" {'do' if len(having) > 1 else 'does'}; it takes: {', '.join(own) or 'no keys'}"
    )


def parse_value(text: str, default: Any) -> Any:
    """Read command-line text as the type of the default it replaces.

    Raises:
      ValueError: says what is expected.
    """
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in words:
            raise ValueError("expected true or false")
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = _number_or_text(text)
    if default is None:
        return value
    if isinstance(default, tuple):
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if all(isinstance(v, float) for v in default):
            values = tuple(float(v) if type(v) is int else v for v in values)
        if {type(v) for v in values} <= {type(v) for v in default}:
            return values
        raise ValueError(f"expected a list such as {_shown(default)}")
    if (
        isinstance(default, float)
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
    ):
        return float(value)
    if isinstance(default, int) and isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"expected {_type_name(default)}, as in {default!r}")


def _number_or_text(text: str):
    try:
        return float(text)  # nan and inf are read here, so that the range check can name them
    except ValueError:
        return text


def _type_name(value: Any) -> str:
    return {float: "a number", int: "a whole number", tuple: "a list"}.get(
        type(value), type(value).__name__
    )


# ---- checking and help ---------------------------------------------------------------------------


def rule_problems(
    config: ConfigDict, keys: Iterable[Key], components: Iterable[Component]
) -> list[str]:
    """List the values outside their rule. Every number must be finite."""
    rules = {key.path: key.rule for key in keys}
    for c in components:
        name = _parent(config, c.path)[_leaf(c.path)].name
        rules |= {
            f"{c.path}.{keyword}": rule for keyword, rule in keyword_rules(c.table[name]).items()
        }
    problems = []
    for path, value in flatten(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            problems.append(f"{path}={value!r}: must be a finite number")
            continue
        rule = rules.get(path)
        if (
            rule is None
            or value is None
            or (isinstance(value, str) and rule in (positive, non_negative, unit, fraction))
        ):
            continue
        allowed = rule(value)
        if allowed:
            shown = "(not shown)" if isinstance(rule, Hidden) else repr(value)
            problems.append(f"{path}={shown}: must be {allowed}")
    return problems


def help_text(keys: Iterable[Key], components: Iterable[Component], config: ConfigDict) -> str:
    """Return every key with its meaning and its value in `config`."""
    flat, lines = flatten(config), []
    for key in keys:
        allowed = [str(x) for x in key.rule.allowed] if isinstance(key.rule, OneOf) else []
        told = all(word in key.meaning for word in allowed)
        meaning = key.meaning if told else f"{key.meaning}: {', '.join(allowed)}"
        lines.append(f"  --config.{key.path}={_shown(flat[key.path])}\n        {meaning}")
    for c in components:
        name = flat[f"{c.path}.name"]
        names = ", ".join(known(c.table)) + _own_too(c.table)
        lines.append(f"  --config.{c.path}.name={name}\n        {c.meaning}: {names}")
        meanings = keyword_meanings(c.table[name])
        for keyword in keyword_defaults(c.table[name]):
            value = flat[f"{c.path}.{keyword}"]
            lines.append(
                f"  --config.{c.path}.{keyword}={_shown(value)}\n       "
                f" {meanings.get(keyword, '')}".rstrip()
            )
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value).replace(" ", "")


def raise_problems(problems: list[str]) -> None:
    """Raise one error that lists every problem.

    Raises:
      ConfigError: when there is any.
    """
    if problems:
        raise ConfigError(
            f"{len(problems)} problem(s) in the configuration:\n"
            + "\n".join("  " + p for p in problems)
        )


def discover(paths: Iterable[str], package: str, table: str) -> Table:
    """Merge the module-level `table` dicts (e.g. "LOSSES") of all modules in a package.

    Raises:
        UserError: two modules use one name, so a configuration would be ambiguous.
    """
    found: dict[str, Callable] = {}
    owner: dict[str, str] = {}
    for module in _modules(paths, package):
        for name, function in getattr(module, table, {}).items():
            if name in found:
                raise UserError(
                    f"{name!r} is in the {table} of both {owner[name]} and {module.__name__}:"
                    " rename one"
                )
            found[name], owner[name] = function, module.__name__
    return Table(found, table.lower())


def constants(
    paths: Iterable[str], package: str, table: str, constant: str, default: Any
) -> dict[str, Any]:
    """Return each table entry's module-level `constant`, or `default` where its module has none."""
    return {
        name: getattr(module, constant, default)
        for module in _modules(paths, package)
        for name in getattr(module, table, {})
    }


def _modules(paths: Iterable[str], package: str) -> Iterator[ModuleType]:
    for info in sorted(pkgutil.iter_modules(paths), key=lambda info: info.name):
        yield importlib.import_module(f"{package}.{info.name}")
