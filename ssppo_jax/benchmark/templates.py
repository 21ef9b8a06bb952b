"""Read and fill templates of judges."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ssppo_jax.errors import DataError


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Replace {name} of the known names in one pass, so that braces in the texts stay."""
    names = "|".join(map(re.escape, fields))
    return re.sub(r"\{(" + names + r")\}", lambda match: fields[match[1]], template)


def read_text(path: Path) -> str:
    """Return a template file.

    Raises:
        DataError: it cannot be read as UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
