"""Keep brackets in docstrings from being read as links: in `x[a][b]` nothing refers to a page."""

import re

import griffe


class Brackets(griffe.Extension):
    """Escape `][` in docstrings, but for what stands in backticks."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Escape the docstring of one object."""
        if obj.docstring is not None:
            parts = obj.docstring.value.split("`")
            parts[::2] = [re.sub(r"\](\s?)\[", r"]\1\[", part) for part in parts[::2]]
            obj.docstring.value = "`".join(parts)
