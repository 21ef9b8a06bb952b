"""Competition mathematics (MATH, arXiv 2103.03874, and its like): is the final answer right?

The answer is compared by the oracle `math_verify`: as a number, a list, or as mathematics."""

from __future__ import annotations

from typing import Annotated

from ml_collections import ConfigDict

from ssppo_jax.benchmark.contract import Benchmark, Grade, Question, Reply
from ssppo_jax.benchmark.rows import read_rows
from ssppo_jax.config import one_of
from ssppo_jax.errors import DataError
from ssppo_jax.oracles.answers import STYLES, boxed
from ssppo_jax.oracles.verify import math_verify
from ssppo_jax.types import Failed, Prompt

VERSION = "final answers by math-verify, 1"
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def math(
    config: ConfigDict,
    *,
    path: str = "",
    split: str = "test",
    instruction: str = INSTRUCTION,
    answer_style: Annotated[str, one_of(*STYLES)] = "auto",
) -> Benchmark:
    """Ask mathematics problems and check the final answer: `accuracy`.

    Args:
        path: a JSONL file with `problem` and `answer` (or `solution`, which ends in a box), the
          folder of a TFDS data set, or hf:HuggingFaceH4/MATH-500.
        split: of a TFDS or hub data set.
        instruction: put behind each problem; empty asks the problem alone.
        answer_style: how the answer is found, as `oracle.answer_style` of math_verify.
    """
    rows = read_rows(path, fields=("problem",), what="mathematics problems", split=split)
    questions = []
    for i, row in enumerate(rows):
        gold = row.get("answer")
        gold = boxed(str(row.get("solution", ""))) if gold in (None, "") else gold
        if gold in (None, ""):
            raise DataError(f"{path}: record {i + 1} has no answer, and no box in a solution")
        text = f"{row['problem']}\n{instruction}" if instruction else str(row["problem"])
        meta = {"answer": str(gold), "subject": row.get("subject", row.get("type", ""))}
        questions.append(Question(str(i), (text,), meta=meta))
    oracle = math_verify(answer_style=answer_style)

    def grade(question: Question, answers: list[str], replies: list[Reply]) -> Grade | Failed:
        asked = {"role": "user", "content": question.turns[0]}
        prompt = Prompt(question.id, (asked,), {"answer": question.meta["answer"]})
        verdict = oracle.ask([prompt], [[answers[-1]]])
        if verdict.failed[0] is not None:
            return verdict.failed[0]
        parts = verdict.parts or {}
        return {name: float(parts[name][0, 0]) for name in ("accuracy", "extracted")}

    return Benchmark(
        VERSION, questions, grade, headline="accuracy", sampling={"sampling.max_new_tokens": 1024}
    )


BENCHMARKS = {"math": math}
