"""The pictures of the site are drawn by docs/figures.py from the package's own functions."""

from pathlib import Path

from ssppo_jax.config import load_module

DOCS = Path(__file__).parents[2] / "docs"


def test_every_figure_is_drawn_committed_and_shown(tmp_path):
    drawn = load_module(str(DOCS / "figures.py")).draw(tmp_path)
    committed = {file.name for file in (DOCS / "img").glob("*.svg")}
    assert {file.name for file in drawn} == committed and all(f.stat().st_size for f in drawn)
    pages = "".join(page.read_text() for page in DOCS.glob("*.md"))
    assert [name for name in committed if f"img/{name}" not in pages] == []
