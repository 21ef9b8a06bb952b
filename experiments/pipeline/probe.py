"""What the frozen states of a model know of the rule, by where they are read.

    python experiments/pipeline/probe.py RUN/pairs.jsonl [MODEL]

Logistic regression on the difference of two states, on pairs of best and worst: accuracy and loss
in five-fold cross-validation. MODEL is SmolLM2 unless given, or a folder such as RUN/short."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from ssppo_jax.data.chat import DATE, encode_chat
from ssppo_jax.distributed.progress import bar
from ssppo_jax.files import read_records
from ssppo_jax.models.decoder import Decoder
from ssppo_jax.weights import hf
from ssppo_jax.weights.source import load_tokenizer, resolve

PAIRS, ROWS = 224, 32
PLACES = ("two tokens before the last", "one before", "last token", "mean of all tokens")
PENALTIES = (10.0, 100.0, 1000.0)


def states(model, conversations):
    """The states after the final norm, [N, place, D] float64."""
    folder = resolve(model)
    arch = hf.read_arch(folder)
    tokenizer = load_tokenizer(folder, vocab_size=arch.vocab_size)
    decoder = Decoder(arch, dtype=jnp.float32, param_dtype=jnp.float32)
    params = jax.tree.map(jnp.asarray, hf.load_params(folder, arch))
    apply = jax.jit(lambda params, *given: decoder.apply({"params": params}, *given).prompt)
    ids = [
        encode_chat(tokenizer, turns, template="model", answered=True, date=DATE).tolist()
        for turns in conversations
    ]
    print("the conversations end with", repr(tokenizer.decode(ids[0][-3:])))
    slots, found = -(-max(map(len, ids)) // 16) * 16, []
    with bar(len(ids), what="states", unit="texts") as progress:
        for start in range(0, len(ids), ROWS):
            part = ids[start : start + ROWS]
            tokens, length = np.zeros((ROWS, slots), np.int32), np.ones(ROWS, np.int32)
            for row, own in enumerate(part):
                tokens[row, : len(own)], length[row] = own, len(own)
            for h, n in zip(np.asarray(apply(params, tokens, length)), length, strict=True):
                found.append([h[n - 3], h[n - 2], h[n - 1], h[:n].mean(0)])
            progress.update(len(part))
    return np.array(found[: len(ids)], np.float64)


def cross_validated(x, penalty):
    """Margins of pairs by weights that were fitted without them, [N]."""
    order, margin = np.random.default_rng(0).permutation(len(x)), np.zeros(len(x))
    for fold in np.array_split(order, 5):
        rest = x[np.setdiff1d(order, fold)]

        def loss(w, rest=rest):
            m = rest @ w
            value = np.logaddexp(0, -m).sum() + 0.5 * penalty * w @ w
            return value, penalty * w - rest.T @ expit(-m)

        start = np.zeros(x.shape[1])
        weights = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
        margin[fold] = x[fold] @ weights
    return margin


def main(pairs, model="embedded:smollm2"):
    rows = [row for row in read_records(Path(pairs)) if row["id"].endswith("-0")][:PAIRS]
    conversations = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
        for row in rows
        for side in ("chosen", "rejected")
    ]
    both = states(model, conversations).reshape(len(rows), 2, len(PLACES), -1)
    for at, place in enumerate(PLACES):
        x = both[:, 0, at] - both[:, 1, at]
        x /= np.sqrt((x**2).mean(0)) + 1e-6
        for penalty in PENALTIES:
            margin = cross_validated(x, penalty)
            loss = np.logaddexp(0, -margin).mean()
            print(f"{place}, penalty {penalty:g}: accuracy {(margin > 0).mean():.2f}, {loss:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
