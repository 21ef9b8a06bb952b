"""PairRM (arXiv 2306.02561), the oracle of SPPO and S-SPPO: a 0.4B ranker that reads the prompt and
both responses at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
from tokenizers import Tokenizer

from ssppo_jax.config import one_of, positive
from ssppo_jax.distributed.mesh import replicated
from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles.judge_prompts import conversation
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.oracles.scorer import Scorer
from ssppo_jax.types import Failed, Prompt, Verdict
from ssppo_jax.weights.encoder import locate_encoder
from ssppo_jax.weights.ranker import MARKERS, load_ranker
from ssppo_jax.weights.table import DTYPES, read_tokenizer

LONGEST = 2048  # tokens of prompt and both responses together, as PairRM was trained


def _template(x: str) -> str | None:
    return None if "{prompt}" in x else "a text that contains {prompt}"


def pairrm(
    *,
    source: str = "llm-blender/PairRM-hf",
    dtype: Annotated[str, one_of(*DTYPES)] = "float32",
    batch_size: Annotated[int, positive] = 16,
    max_source_length: Annotated[int, positive] = 1224,
    source_template: Annotated[str, _template] = "{prompt}",
) -> Oracle:
    """Prefer with P(a beats b) = sigmoid((s_ab - s_ba) / 2), s_ab the ranker's logit.

    The response named first is shown first; both orders of every pair are scored. Preferences
    [B,K,K] with the part `asymmetry` [B,K,K], sigmoid(s_ab) + sigmoid(s_ba) - 1: above 0 where the
    first place is favoured. With
    pairs.win_rate_estimator=pairwise these are the paper's win rates; score_bt makes of them what
    SPPO's published code does. PairRM reads 2048 tokens in all, up to `max_source_length` of them
    the prompt's, the rest shared by the two responses. A prompt with longer inputs fails (the
    reference cuts them silently).

    Args:
        source: a repo id or folder in the format of llm-blender/PairRM-hf.
        dtype: compute dtype, float32 or bfloat16.
        batch_size: pairs scored at a time.
        max_source_length: tokens of the prompt, marker and special tokens included.
        source_template: what is put around the prompt's text, as "[INST] {prompt} [/INST]"
            (reconstruction: SPPO's scripts pass the chat-templated prompt, the paper is silent).
    """
    folder = locate_encoder(source)
    loaded = load_ranker(folder, dtype=dtype)
    arch = loaded.ranker.arch
    tokenizer = read_tokenizer(folder, arch.vocab_size)
    reader = PairReader(
        folder, tokenizer, (arch.source_id, arch.first_id, arch.second_id), max_source_length
    )
    scorer = Scorer(
        lambda params, tokens, length: loaded.ranker.apply({"params": params}, tokens, length),
        lambda mesh: jax.device_put(loaded.params, replicated(mesh)),
        batch_size=batch_size,
        longest=LONGEST,
        name=f"oracle pairrm {source!r}",
    )

    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        k = len(responses[0])
        orders = list(itertools.permutations(range(k), 2))
        groups: list[list[list[int]] | Failed] = []
        for prompt, texts in zip(prompts, responses, strict=True):
            text = source_template.replace("{prompt}", conversation(prompt))
            groups.append(reader.pairs(text, texts, orders))
        kept = [group for group in groups if not isinstance(group, Failed)]
        failed = tuple(group if isinstance(group, Failed) else None for group in groups)
        logits = scorer([ids for group in kept for ids in group]).reshape(len(kept), len(orders))
        judged = np.zeros((len(kept), k, k))
        judged[:, ~np.eye(k, dtype=bool)] = logits  # permutations go row by row
        first = np.full((len(groups), k, k), np.nan)  # s_ij, i shown first
        first[[f is None for f in failed]] = judged
        second = first.swapaxes(1, 2)
        preference = _sigmoid((first - second) / 2)
        asymmetry = _sigmoid(first) + _sigmoid(second) - 1
        parts = {"asymmetry": asymmetry.astype(np.float32)}
        return Verdict(preference.astype(np.float32), None, failed, parts)

    return Oracle(ask, place=scorer.place, on_device=True)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


class PairReader:
    """Encodes texts for the ranker: each of the three begins with its marker and has special tokens
    of its own."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        markers: tuple[int, int, int],
        max_source_length: int,
    ):
        self.tokenizer, self.markers, self.most = tokenizer, markers, max_source_length
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        found = tuple(self.tokenizer.token_to_id(marker) for marker in MARKERS)
        if found != markers:
            raise ConfigError(
                f"oracle pairrm: {folder}: the tokenizer gives {', '.join(MARKERS)} the ids"
                f" {found}, config.json says {markers}; use the tokenizer that belongs to the model"
            )

    def pairs(
        self, source: str, texts: Sequence[str], orders: Sequence[tuple[int, int]]
    ) -> list[list[int]] | Failed:
        """Return the ids of every order of two responses."""
        head = self._ids(0, source)
        one, two = ([self._ids(which, text) for text in texts] for which in (1, 2))
        marked = [sum(map(ids.count, self.markers)) for ids in (head, *one, *two)]
        if any(n != 1 for n in marked):
            return Failed("the text holds one of PairRM's own markers")
        if len(head) > self.most:
            return Failed(
                f"the prompt is longer than max_source_length = {self.most} tokens of PairRM"
            )
        room = (LONGEST - len(head)) // 2
        if max(map(len, (*one, *two))) > room:
            return Failed(
                f"a response is longer than the {LONGEST} tokens of PairRM leave room for"
            )
        return [head + one[i] + two[j] for i, j in orders]

    def _ids(self, which: int, text: str) -> list[int]:
        return self.tokenizer.encode(MARKERS[which] + text).ids


ORACLES = {"pairrm": pairrm}
