"""Read a command's options: each given once, a mistake told as a ConfigError, and overrides of the
config apart from the rest."""

from __future__ import annotations

import argparse
import os
from typing import NoReturn

from ssppo_jax.config.user_code import expanded
from ssppo_jax.errors import ConfigError


class Options(argparse.ArgumentParser):
    """Parse options that are given once; report a mistake as a ConfigError."""

    def __init__(self, *args, **how):
        super().__init__(*args, **how)
        self.register("action", None, _Once)  # of an option that names no action

    @property
    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings if flag != "-h"]

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog.split()[-1]}: {message}")


class _Once(argparse.Action):
    """Store one value and refuse a second one."""

    def __call__(self, parser, namespace, value, option=None):
        if getattr(namespace, f"_{self.dest}", False):
            raise argparse.ArgumentError(self, "given twice; it takes one value")
        setattr(namespace, f"_{self.dest}", True)
        setattr(namespace, self.dest, value)


def option_of(rest: list[str], flag: str) -> str:
    """Return an option's value, or "", where help is asked for and others may be missing."""
    parser = Options("help", add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="value", default="")
    return parser.parse_known_args(rest)[0].value


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Part the --config.KEY=VALUE overrides from a command's own options."""
    rest: list[str] = []
    overrides: dict[str, str] = {}
    for arg in argv:
        if not arg.startswith("--config."):
            rest.append(arg)
            continue
        key, equals, value = arg.removeprefix("--config.").partition("=")
        if not equals:
            raise ConfigError(f"{arg}: write it as --config.{key}=VALUE")
        if key in overrides:
            raise ConfigError(f"--config.{key} is given twice: {overrides[key]} and {value}")
        overrides[key] = value
    return rest, overrides


def as_utf_8(arg: str) -> str:
    """Return an argument as UTF-8 text; where the locale says ASCII, it came as escaped bytes."""
    try:
        arg.encode()
        return arg
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(arg).decode("utf-8")
    except UnicodeError:
        raise ConfigError(f"the argument {arg!a} is not UTF-8; write it in UTF-8") from None


def path_or_address(text: str) -> str:
    """Return a path with ~ as the home folder: a shell leaves it alone behind --workdir=."""
    if not text:
        raise argparse.ArgumentTypeError("no path is given; is a variable of the shell empty?")
    return text if "://" in text else str(expanded(text))


def path_on_disk(text: str) -> str:
    """Return a path on this machine's disk."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text}: only train works in a store, by its --workdir; give a path on a disk"
        )
    return path_or_address(text)


def whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1")
    return int(text)


def positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a positive number")
    return value
