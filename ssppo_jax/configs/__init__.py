"""The configs that belong to the package: `--config=quickstart` names `quickstart.py` here."""
