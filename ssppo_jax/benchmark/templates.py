"""Fill templates of judges, and find the files of packages that are installed but not imported."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from pathlib import Path

from ssppo_jax.errors import ConfigError, DataError


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Replace {name} of the known names in one pass, so that braces in the texts stay."""
    names = "|".join(map(re.escape, fields))
    return re.sub(r"\{(" + names + r")\}", lambda match: fields[match[1]], template)


def installed(distribution: str, file: str, *, remedy: str) -> Path:
    """Return a file of an installed package, which is found by its metadata and not imported.

    Raises:
        ConfigError: the package or the file is not there; ends in `remedy`.
    """
    try:
        path = Path(str(importlib.metadata.distribution(distribution).locate_file(file)))
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"{distribution} is not installed; {remedy}") from None
    if not path.exists():
        raise ConfigError(f"{distribution} is installed but lacks {file}; {remedy}")
    return path


def read_text(path: Path) -> str:
    """Return a template file.

    Raises:
        DataError: it cannot be read as UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
