"""The examples enter functions in the package's tables: other tests must not find them there."""

import pytest

from ssppo_jax.data import SOURCES
from ssppo_jax.losses import ADVANTAGES, GATES, LOSSES, RATIO_GATES, ROWS, TIES
from ssppo_jax.models.family import FAMILIES
from ssppo_jax.oracles import ORACLES

TABLES = (SOURCES, LOSSES, ROWS, TIES, GATES, RATIO_GATES, ADVANTAGES, FAMILIES, ORACLES)


@pytest.fixture(autouse=True)
def tables_as_they_were():
    before = [dict(table) for table in TABLES]
    yield
    for table, entries in zip(TABLES, before, strict=True):
        table.clear()
        table.update(entries)
