"""Measure S, the similarity of two responses (S-SPPO's gate, arXiv 2606.01561, section 3.1).

    S_ij = max(0, cos(phi(y_i), phi(y_j)))    phi: a frozen sentence encoder; S is [B,K,K]

The paper's notation embeds the response alone and does not mention truncation. `embed_text` and
`max_length` are therefore options (reconstruction). Texts over the limit are cut as
sentence-transformers cuts them, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ssppo_jax.errors import ConfigError, UserError
from ssppo_jax.types import Array

Texts = Sequence[Sequence[str]]  # B groups of K texts
Embed = Callable[[Sequence[str]], np.ndarray]  # R texts -> [R,D]

EMBED_TEXTS = ("response", "prompt_response")


def similarity_matrix(
    embeddings: Array,  # [B,K,D] float32, any norm
) -> np.ndarray:  # [B,K,K] float32 in [-1,1]
    """Return the cosines within each group; S is symmetric, which Lemma 3.1 needs for P_ij + P_ji =
    1.

    The zero vector has cosine 0 with everything, itself included. Negative values are kept: see
    `relu_cosine`.
    """
    vectors = np.asarray(embeddings, np.float32)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return np.clip(unit @ unit.swapaxes(-1, -2), -1.0, 1.0)


def relu_cosine(texts: Texts, embed: Embed) -> np.ndarray:
    """Return max(0, cos), the paper's: opposed texts count as unrelated, so the gate 1-S stays in
    [0,1].
    """
    return np.maximum(cosine(texts, embed), 0.0)


def cosine(texts: Texts, embed: Embed) -> np.ndarray:
    """Return the cosine in [-1,1]; below 0 a linear gate amplifies a preference instead of damping
    it, by up to 2 (see `losses.gates`).
    """
    flat = embed([text for group in texts for text in group])
    return similarity_matrix(flat.reshape(len(texts), len(texts[0]), -1))


def token_jaccard(texts: Texts, embed: Embed | None = None) -> np.ndarray:
    """Return |A & B| / |A | B| of the lower-cased word sets (1 for two empty texts), without an
    encoder.
    """
    del embed
    return np.stack(
        [_jaccard([frozenset(text.lower().split()) for text in group]) for group in texts]
    )


def _jaccard(words: list[frozenset]) -> np.ndarray:
    return np.array(
        [[len(a & b) / len(a | b) if a | b else 1.0 for b in words] for a in words], np.float32
    )


SIMILARITIES: dict[str, Callable[..., np.ndarray]] = {  # (texts, embed)
    "relu_cosine": relu_cosine,
    "cosine": cosine,
    "token_jaccard": token_jaccard,
}
WITHOUT_ENCODER = frozenset({"token_jaccard"})  # of SIMILARITIES: `embed` may be None


def score_similarity(
    prompts: Sequence[str],  # B
    responses: Texts,  # [B][K]
    embed: Embed | None,
    *,
    similarity: str = "relu_cosine",
    embed_text: str = "response",
    prefix: str = "",
) -> np.ndarray:  # [B,K,K] float32, symmetric
    """Return the similarities within each prompt's group of responses.

    Args:
        similarity: relu_cosine (the paper's), cosine, or token_jaccard (word overlap, no encoder).
        embed_text: response (the paper's phi(y)), or prompt_response (prompt, newline, response).
        prefix: put before every text; Nomic's encoders were trained with their task there.

    Raises:
      ConfigError: an unknown name.
      ValueError: groups that do not all have K responses.
      UserError: a similarity is not finite; a NaN would pass unseen into the targets.
    """
    for given, table, key in (
        (similarity, SIMILARITIES, "similarity"),
        (embed_text, EMBED_TEXTS, "embed_text"),
    ):
        if given not in table:
            raise ConfigError(f"{key}={given!r} is not one of {', '.join(table)}")
    sizes = {len(group) for group in responses}
    if len(prompts) != len(responses) or len(sizes) != 1:
        raise ValueError(
            f"{len(prompts)} prompts, {len(responses)} groups of sizes {sorted(sizes)}: K must be"
            " one number"
        )
    if embed_text == "prompt_response":
        responses = [
            [f"{p}\n{y}" for y in group] for p, group in zip(prompts, responses, strict=True)
        ]
    if prefix:
        responses = [[prefix + y for y in group] for group in responses]
    matrix = SIMILARITIES[similarity](responses, embed)
    if not np.isfinite(matrix).all():
        raise UserError(
            f"similarity {similarity!r} gave NaN or Inf: the encoder's weights are damaged or"
            " overflow"
        )
    return matrix
