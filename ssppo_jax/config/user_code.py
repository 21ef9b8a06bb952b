"""Run the Python that a user wrote: config files, and functions named path/to/file.py:function.

An error in it is told with its file and line."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from ssppo_jax.config.nodes import flatten, nearest
from ssppo_jax.errors import ConfigError, UserError

OWN = re.compile(r"(?P<file>[^\s,'\"]+\.py):(?P<name>\w+)")  # path/to/file.py:function


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


def place_of(error: BaseException, file: str) -> str:
    """Return "file:line: " of the line of a user's file that an error went through."""
    line = _line_of(error, str(expanded(file).resolve())) or _line_of(error, file)
    return file + (f":{line}" if line else "") + ": "


@contextlib.contextmanager
def told_by_line(spec: str, about: str) -> Iterator[None]:
    """Tell what a user's function raises in the block by its line; of other functions nothing
    is caught.

    Args:
      spec: path/to/file.py:name; or the name of a function that is not a user's own.
      about: what was done, for the message.

    Raises:
      UserError: it raised something else than that.
    """
    own = OWN.fullmatch(spec)
    try:
        yield
    except (Exception, SystemExit) as error:  # whatever a user's function can raise
        if own is None or isinstance(error, UserError):
            raise
        place = place_of(error, own["file"])
        raise UserError(f"{place}{type(error).__name__}: {error} (in {spec}, {about})") from error


def _line_of(error: BaseException, file: str) -> int | None:
    frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    return (frames or [None])[-1]


def run_file(module: ModuleType, function: Callable, *arguments) -> Any:
    """Call function(*arguments) and report an error of the config file with the file's own line."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:  # whatever a user's file can raise
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
        return f"no such key {unknown[1]!r}; {nearest(unknown[1], there)}it has: {', '.join(there)}"
    other = re.search(
        r"Could not override field '(\w+)'.*?\. (.*) is of original type <class '(\w+)'> and"
        r" cannot be casted to type <class '(\w+)'>",
        text,
        re.DOTALL,
    )
    return f"{other[1]}={other[2]}: expected {other[4]}, not {other[3]}" if other else ""


# keys of earlier releases; an empty new name: it is gone
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
        near = nearest(path.name, [p.name for p in path.parent.glob("*.py")])
        raise ConfigError(
            f"{spec!r}: no file {file!r} in {Path.cwd()}{'; ' + near.strip() if near else ''}"
        )
    module = _user_module(str(path.resolve()), _digest(path))
    if not hasattr(module, name):
        own = [x for x in vars(module).values() if getattr(x, "__module__", "") == module.__name__]
        given = [x.__name__ for x in own if inspect.isfunction(x) and x.__name__[0] != "_"]
        raise ConfigError(
            f"{spec!r}: {file} defines no {name!r}; {nearest(name, given)}its functions are:"
            f" {', '.join(given) or 'none'}"
        )
    return getattr(module, name)


@functools.cache
def _user_module(path: str, digest: str) -> ModuleType:
    return _executed(f"_user_{Path(path).stem}_{digest[:8]}", path)


def _executed(name: str, path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; its name must end in .py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look it up
    run_file(module, _execute, module)
    return module


def _execute(module: ModuleType) -> None:
    """Compile and run a file's present text: Python would take a file of the same second and size
    for the one that it compiled before."""
    file = str(module.__file__)
    exec(compile(Path(file).read_bytes(), file, "exec", dont_inherit=True), vars(module))


def user_files(config: Mapping[str, Any]) -> dict[str, str]:
    """Return {file: SHA-256} of the user's Python files that a config's values name."""
    values = flatten(config).values() if isinstance(config, ConfigDict) else config.values()
    texts = [value for value in values if isinstance(value, str)]
    named = sorted({match["file"] for text in texts for match in OWN.finditer(text)})
    return {file: _digest(expanded(file)) for file in named if expanded(file).is_file()}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


CONFIGS = Path(__file__).parents[1] / "configs"  # the package's own, named without a path


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
    return _executed(f"_config_{Path(path).stem}", path)


def _config_file(spec: str) -> str:
    """Return the file that a spec names: one of the package's configs, a path, or a module."""
    given = spec.partition(":")[0]
    if given.startswith("~"):  # a shell leaves it alone behind --config=
        given = str(expanded(given))
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
            f"--config={spec}: no file {given!r}; {nearest(given, known)}found there: "
            f"{', '.join(known) or 'nothing'}. The package's own are named without a path: {names}"
        )
    try:
        found = importlib.util.find_spec(given)
    except (ImportError, ValueError):
        found = None
    except Exception as error:  # whatever the package around it raises
        raise ConfigError(f"--config={spec}: {type(error).__name__}: {error}") from error
    if found is None or found.origin is None or not found.has_location:
        raise ConfigError(
            f"--config={spec}: no such config; {nearest(given, config_names())}the package has"
            f" {names}; or give the path of a Python file, or an importable module"
        )
    return found.origin
