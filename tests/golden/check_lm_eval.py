"""Check our model in lm-evaluation-harness against its Hugging Face backend, on one tiny model.

    pip install lm_eval==0.4.13 torch==2.13.0    # beside the project's own packages
    python tests/golden/check_lm_eval.py

Three local tasks ask for all three kinds of request: loglikelihood (multiple choice), rolling
loglikelihood (perplexity) and generate_until. Every metric must agree, to 1e-4 where it is a
log-prob and exactly where it is a choice or a text."""

import json
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

CHOICES = [
    {"q": "The sky is", "choices": [" blue", " green", " a fish"], "gold": 0},
    {"q": "One and one are", "choices": [" two", " three", " eleven"], "gold": 1},
    {"q": "Water ", "choices": ["boils", "is dry", "sleeps"], "gold": 2},
    {"q": "é is", "choices": [" a letter", " ü", " 漢"], "gold": 0},
]
TEXTS = [{"text": "A short text."}, {"text": "Another one, é and more. " * 30}]
TASKS = {
    "choice": "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
    "doc_to_target: '{{gold}}'\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    "metric_list:\n  - metric: byte_perplexity\n  - metric: bits_per_byte\n",
    "writing": "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: 'x'\n"
    "generation_kwargs:\n  until: ['e']\n  max_gen_toks: 24\n  do_sample: false\n"
    "metric_list:\n  - metric: exact_match\n",
}


def task_folder():
    folder = Path(tempfile.mkdtemp())
    for name, rows in (("choice", CHOICES), ("rolling", TEXTS), ("writing", CHOICES)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        (folder / f"{name}.yaml").write_text(
            f"task: local_{name}\ndataset_path: json\ntest_split: test\ndataset_kwargs:\n"
            f"  data_files:\n    test: {folder / name}.jsonl\n" + TASKS[name],
            encoding="utf-8",
        )
    return folder


def answers(found):
    """Return the raw replies of each task, in the order of its documents."""
    return {
        task: [s["resps"] for s in sorted(samples, key=lambda s: s["doc_id"])]
        for task, samples in found["samples"].items()
    }


def flat(value):
    """Yield the numbers and texts inside of nested lists."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from flat(item)
    else:
        yield value


def main():
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from ssppo_jax.benchmark import settings
    from ssppo_jax.benchmark.answers import Model
    from ssppo_jax.benchmark.harness import make_lm

    names = [f"local_{name}" for name in TASKS]
    folder = task_folder()
    config = settings.load(
        "lm_eval", {"benchmark.tasks": ",".join(names), "sampling.max_new_tokens": "24"},
        model="random:tiny",
    )  # fmt: skip
    model = Model(config)
    ours = make_lm(model)
    theirs = HFLM(pretrained=str(model.folder), device="cpu", dtype="float32", batch_size=2)
    results = []
    for lm in (ours, theirs):
        manager = TaskManager(include_path=str(folder))
        results.append(simple_evaluate(model=lm, tasks=names, task_manager=manager))
    worst = 0.0
    for task in names:
        one, two = (list(flat(answers(found)[task])) for found in results)
        assert len(one) == len(two), task
        for a, b in zip(one, two, strict=True):
            if isinstance(a, float):
                worst = max(worst, abs(a - float(b)) / max(1.0, abs(a)))
            else:
                assert a == b, (task, a, b)
        print(task, {k: v for k, v in results[0]["results"][task].items() if k != "alias"})
        print(" " * len(task), {k: v for k, v in results[1]["results"][task].items()})
    print(f"largest relative difference of a log-prob: {worst:.1e}")
    assert worst < 1e-4


if __name__ == "__main__":
    main()
