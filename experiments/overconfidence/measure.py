"""What each bin of similarity does to the policy: share of the squared gradient, target, movement.

    python experiments/overconfidence/measure.py runs/overconfidence-traces DIR

reads the runs of traces.py, which keep a checkpoint of every iteration, and writes DIR/traces.md.
The gradient of SPPO's regression at pi_t is a weighted sum of the gradients of log pi(winner) and
log pi(loser). So one Gram matrix of these vectors for each iteration gives the norms and the
cosines of every gate and of the true utility. Repulsion's own gradient is left out."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from courses import settings_of
from jax.flatten_util import ravel_pytree
from language import prompts, utility
from numpy.typing import NDArray

from ssppo_jax.data.chat import encode_chat
from ssppo_jax.files import read_json, read_records
from ssppo_jax.runtime import Runtime, build_runtime
from ssppo_jax.weights import hf
from ssppo_jax.weights.checkpoint import read_arrays

EDGES = (0.0, 0.3, 0.5, 0.77, 1.0)  # of S; from 0.77 on the oracle's bias decides
STRIDE = 3  # of the iterations, every third is measured
ROWS = 8  # gradients made at one time
Floats = NDArray[np.float64]


class Iteration(NamedTuple):
    """Hold what one iteration trained on and what became of it; M pairs."""

    similarity: Floats  # [M]
    weight: Floats  # [M,2], of grad log pi(winner) and of the loser in the method's gradient
    honest: Floats  # [M,2], the same if u had judged the pair
    gram: Floats  # [2M,2M]
    moved: Floats  # [M,2], change of log pi by the iteration
    target: Floats  # [M], margin of the targets
    early: bool  # in the first half of the run


def main(workdir: Path, output: Path) -> None:
    found: dict[str, list[Iteration]] = {}
    for run in read_json(workdir / "sweep.json")["runs"]:
        folder = workdir / Path(run["folder"]).name
        if not (folder / "result.json").is_file():
            continue
        for part in iterations(run["command"], folder):
            half = "first half" if part.early else "second half"
            found.setdefault(f"{run['label']}, {half}", []).append(part)
    lines = ["| | S | pairs | target margin | squared gradient | moved, nats |", "|" + " --- |" * 6]
    for label, parts in found.items():
        rows = [row for part in parts for row in by_similarity(part)]
        for low, high in itertools.pairwise(EDGES):
            mean = averaged([row for row in rows if row["low"] == low])
            lines.append(
                f"| {label} | {low:g} to {high:g} | {mean['pairs']:.2f} | {mean['target']:.3f} |"
                f" {mean['gradient']:.2f} | {mean['moved']:.2f} |"
            )
    lines += ["", "| | cosine, all pairs | cosine, S below 0.77 | noise to signal |"]
    lines += ["|" + " --- |" * 4]
    for label, parts in found.items():
        mean = averaged([whole(part) for part in parts])
        lines.append(
            f"| {label} | {mean['cosine']:.2f} | {mean['apart']:.2f} | {mean['noise']:.1f} |"
        )
    output.mkdir(parents=True, exist_ok=True)
    (output / "traces.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def averaged(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each number over iterations, without those that have none."""
    kept = {key: [x for row in rows if np.isfinite(x := row[key])] for key in rows[0]}
    return {key: float(np.mean(x)) if x else np.nan for key, x in kept.items()}


def by_similarity(one: Iteration) -> list[dict]:
    """Return for each bin its shares of pairs and of squared gradient norms, the mean margin of
    targets and the mean movement |change of log pi| of a response."""
    squares = np.einsum("ma,mab,mb->m", one.weight, blocks(one.gram), one.weight)
    rows = []
    for low, high in itertools.pairwise(EDGES):
        here = (one.similarity >= low) & ((one.similarity < high) | (high == EDGES[-1]))
        rows.append(
            {
                "low": low,
                "pairs": here.mean(),
                "gradient": squares[here].sum() / max(squares.sum(), 1e-12),
                "target": one.target[here].mean() if here.any() else np.nan,
                "moved": np.abs(one.moved[here]).mean() if here.any() else np.nan,
            }
        )
    return rows


def blocks(gram: Floats) -> Floats:  # [M,2,2]
    """Return each pair's own part of the Gram matrix."""
    m = len(gram) // 2
    return gram.reshape(m, 2, m, 2)[np.arange(m), :, np.arange(m), :]


def whole(one: Iteration) -> dict[str, float]:
    """Return the cosine of the whole gradient with that of the true utility on the same pairs, and
    the variance of one pair's gradient over the squared norm of their mean."""
    apart = (one.similarity < EDGES[-2])[:, None]
    squares = np.einsum("ma,mab,mb->m", one.weight, blocks(one.gram), one.weight)
    mean = product(one.gram, one.weight, one.weight) / len(squares) ** 2
    return {
        "cosine": cosine(one.gram, one.weight, one.honest),
        "apart": cosine(one.gram, one.weight * apart, one.honest),
        "noise": float((squares.mean() - mean) / max(mean, 1e-12)),
    }


def product(gram: Floats, a: Floats, b: Floats) -> float:
    return float(a.ravel() @ gram @ b.ravel())


def cosine(gram: Floats, a: Floats, b: Floats) -> float:
    norms = product(gram, a, a) * product(gram, b, b)
    return product(gram, a, b) / norms**0.5 if norms > 0 else np.nan


# ---- a run ---------------------------------------------------------------------------------------


def iterations(command: str | list[str], folder: Path) -> list[Iteration]:
    """Read every iteration of a run whose checkpoints are kept."""
    config = settings_of(command)
    runtime = build_runtime(config)
    asked = {p.id: p for p in prompts(duplicates=config.data.source.duplicates)}
    pairs = list(read_records(folder / "pairs.jsonl"))
    steps = sorted((folder / "checkpoints").glob("step_*"))
    policies = [runtime.load_params(), *(stored(step) for step in steps)]
    gradients, logps = programs(runtime)
    found = []
    for t in range(0, len(policies) - 1, STRIDE):
        rows = [row for row in pairs if row["iteration"] == t]
        batch = encoded(runtime, [asked[row["prompt_id"]] for row in rows], rows)
        gram = gradients(policies[t], batch)
        moved = logps(policies[t + 1], batch) - logps(policies[t], batch)
        worth = [
            [utility(asked[row["prompt_id"]], row[side]) for side in ("winner", "loser")]
            for row in rows
        ]
        sign = np.sign(np.array(worth)[:, 0] - np.array(worth)[:, 1])
        target = np.array([row["target"] for row in rows])
        found.append(
            Iteration(
                np.array([row["similarity"] for row in rows]),
                target - 0.5,
                np.stack([sign, -sign], axis=1) / 4,
                gram,
                moved,
                np.abs(target[:, 0] - target[:, 1]),
                2 * t < len(policies) - 1,
            )
        )
    return found


def stored(step: Path) -> dict:
    """Return the parameters of a checkpoint."""
    tree: dict = {}
    for leaf, value in read_arrays(step, "params/").items():
        hf.insert(tree, leaf, value)
    return tree


def encoded(runtime: Runtime, asked: list, rows: list[dict]) -> tuple[np.ndarray, ...]:
    """Return prompts [M,P], their lengths [M], winner and loser [M,2,T] and their mask."""
    slots, width = runtime.config.sampling.max_new_tokens, runtime.config.data.max_prompt_length
    prompt = np.zeros((len(rows), width), np.int32)
    length = np.zeros(len(rows), np.int32)
    tokens = np.zeros((len(rows), 2, slots), np.int32)
    mask = np.zeros((len(rows), 2, slots), np.float32)
    for i, (one, row) in enumerate(zip(asked, rows, strict=True)):
        ids = encode_chat(runtime.tokenizer, one.messages)
        prompt[i, : len(ids)], length[i] = ids, len(ids)
        for k, side in enumerate(("winner", "loser")):
            said = runtime.tokenizer(row[side], add_special_tokens=False)["input_ids"]
            said = [*said, *runtime.eos][:slots]  # one that was cut has no end
            tokens[i, k, : len(said)], mask[i, k, : len(said)] = said, 1.0
    return prompt, length, tokens, mask


def programs(runtime: Runtime):
    """Return gradients(params, batch) -> Gram [2M,2M] and logps(params, batch) -> [M,2]."""
    apply = runtime.make_apply()

    @jax.jit
    def sums(params, prompt, length, tokens, mask):
        policy, _ = apply(params, prompt, length, tokens, mask)
        return jnp.sum(jnp.where(mask > 0, policy.logp, 0.0), axis=-1)

    @jax.jit
    def vectors(params, prompt, length, tokens, mask):
        def one(prompt, length, tokens, mask):
            def of(params):
                return sums(params, prompt[None], length[None], tokens[None], mask[None])[0]

            return jax.vmap(lambda tree: ravel_pytree(tree)[0])(jax.jacrev(of)(params))

        return jax.lax.map(lambda row: one(*row), (prompt, length, tokens, mask))

    def gram(params, batch):
        parts = [
            np.asarray(vectors(params, *(x[i : i + ROWS] for x in batch)))
            for i in range(0, len(batch[0]), ROWS)
        ]
        flat = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
        return (flat @ flat.T).astype(np.float64)

    return gram, lambda params, batch: np.asarray(sums(params, *batch), np.float64)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
