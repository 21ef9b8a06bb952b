"""A data source of one's own: products of two numbers, with their answers."""

from typing import Annotated

from ssppo_jax.config import load_config, positive
from ssppo_jax.data import SOURCES
from ssppo_jax.schema import select
from ssppo_jax.types import Prompt


def products(*, largest: Annotated[int, positive] = 9) -> list[Prompt]:
    """Return one question for each product of two numbers from 1 to `largest`.

    Args:
        largest: the largest factor
    """
    numbers = range(1, largest + 1)
    return [
        Prompt(
            id=f"{a}x{b}",  # unique and stable: it addresses the prompt's random keys
            messages=({"role": "user", "content": f"What is {a} times {b}?"},),
            meta={"answer": str(a * b)},  # for oracles; the model does not see it
        )
        for a in numbers
        for b in numbers
    ]


SOURCES["products"] = products


def get_config():
    config = load_config("smoke")
    select(config, "data.source", "products", largest=8)
    return config
