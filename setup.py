"""The entry for tools that call setup.py. All metadata is in pyproject.toml."""

from setuptools import setup

setup()
