"""Every recipe is a config that can run, and the page names it."""

import re
from pathlib import Path

import pytest

from ssppo_jax import schema
from ssppo_jax.config import load_config

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*_*.py"))
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_runs_as_a_config_on_eight_devices_and_ends_in_bounds(recipe):
    config = load_config(str(recipe))
    schema.check(config, 8 if "Not run here" in recipe.read_text(encoding="utf-8") else 1)
    text = recipe.read_text(encoding="utf-8")
    assert f"`{recipe.name}`" in PAGE and "    check(" in text
    bounds = [
        (float(low), float(high)) for low, high in re.findall(r"\(([\d.]+), ([\d.]+)\)", text)
    ]
    assert bounds and all(low < high for low, high in bounds)


def test_what_is_not_run_here_is_said_on_the_page_and_in_the_file():
    for recipe in RECIPES:
        tiny = recipe.stem.startswith("tiny_")
        assert ("Not run here" in recipe.read_text(encoding="utf-8")) != tiny
        row = next(line for line in PAGE.splitlines() if f"`{recipe.name}`" in line)
        assert row.rstrip().endswith("| no |") != tiny
