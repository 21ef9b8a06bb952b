"""An oracle of one's own: it rewards responses that take up the prompt's words."""

import re
from typing import Annotated

import numpy as np

from ssppo_jax.config import NonNegative, load_config, positive
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.schema import select
from ssppo_jax.types import Failed, Prompt, Verdict


def on_topic(*, shortest: Annotated[int, positive] = 4, brevity: NonNegative = 0.0) -> Oracle:
    """Return an oracle whose reward is the share of the prompt's words that a response repeats.

    Args:
        shortest: letters that a word must have to count
        brevity: what a character costs; above 0, responses without any such word rarely tie
    """

    def words(text: str) -> set[str]:
        return {word for word in re.findall(r"\w+", text.lower()) if len(word) >= shortest}

    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        reward = np.full((len(prompts), len(responses[0])), np.nan, np.float32)  # [B,K]
        failed: list[Failed | None] = []
        for row, prompt, group in zip(reward, prompts, responses, strict=True):
            wanted = words(prompt.text)
            # A prompt that cannot be judged is dropped and counted; its row stays NaN.
            failed.append(None if wanted else Failed(f"no word of {shortest} letters"))
            if wanted:
                share = [len(wanted & words(text)) / len(wanted) for text in group]
                row[:] = [s - brevity * len(text) for s, text in zip(share, group, strict=True)]
        return Verdict(preference=None, reward=reward, failed=tuple(failed))

    return Oracle(ask)


ORACLES["on_topic"] = on_topic


def get_config():
    config = load_config("smoke")
    select(config, "oracle", "on_topic", shortest=3)
    return config
