"""Write gsm8k.json: what lm-evaluation-harness makes of few-shot prompts and of answers; and say
what alpaca-eval shows first.

Run it where both packages are installed, apart from the project's own environment:

    pip install lm_eval==0.4.13 alpaca-eval==0.6.6
    python tests/golden/make_benchmarks.py                       # the golden file
    python tests/golden/make_benchmarks.py RUN/official FILE     # judge a run's answers again

RUN/official is what `benchmark --name=gsm8k` wrote, FILE the test set that it was given. The
harness's own task then grades the same answers, and its accuracy is printed beside ours."""

import argparse
import json
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TRAIN = [{"question": f"What is {n} + {n}?", "answer": f"{n}+{n}\n#### {2 * n}"} for n in range(9)]
TEST = [
    {"question": "How many?", "answer": "It is.\n#### 1,234"},
    {"question": "And now?", "answer": "Less: $5.\n#### -7"},
    {"question": "Eggs?", "answer": "3*6=<<3*6=18>>18\n#### 18"},
]
ANSWERS = [
    ("The total is\n#### 1,234", 0), ("#### 1234", 0), ("So it is $1,234.", 0), ("1234.00", 0),
    ("It is #### 5 and not #### 1234", 0), ("", 0), ("none", 0), ("#### abc 1234", 0),
    ("-7", 1), ("#### -7", 1), ("it falls to -7.", 1), ("#### 7", 1), ("minus 7", 1),
    ("18 eggs", 2), ("The answer is 18.0", 2), ("9 + 9 = 18, I think", 2), ("18.", 2),
    ("#### 18.", 2), ("3 * 6 = 18 dollars, or 18/2 = 9 each", 2), ("$18", 2), ("1, 8", 2),
]  # fmt: skip


def task_folder(train, test):
    """Write the harness's task gsm8k on local files."""
    import lm_eval

    folder = Path(tempfile.mkdtemp())
    for name, rows in (("train", train), ("test", test)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    own = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    (folder / "local.yaml").write_text(
        f"include: {own}\ntask: gsm8k_local\ndataset_path: json\ndataset_name: null\n"
        "dataset_kwargs:\n  data_files:\n"
        f"    train: {folder / 'train.jsonl'}\n    test: {folder / 'test.jsonl'}\n",
        encoding="utf-8",
    )
    return folder


def evaluated(folder, answers, num_fewshot, chat, multiturn):
    """Let the harness ask a model that gives these answers; return its results and the prompts."""
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    prompts = {}

    class Said(LM):
        def loglikelihood(self, requests):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

        def generate_until(self, requests):
            for request in requests:
                prompts[request.doc_id] = request.args[0]
            return [answers[request.doc_id] for request in requests]

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            return json.dumps(chat_history)

        def chat_template(self, chat_template=False):
            return ""

        @property
        def tokenizer_name(self):
            return "none"

    found = simple_evaluate(
        model=Said(),
        tasks=["gsm8k_local"],
        task_manager=TaskManager(include_path=str(folder)),
        num_fewshot=num_fewshot,
        apply_chat_template=chat,
        fewshot_as_multiturn=multiturn,
    )
    return found, [prompts[i] for i in sorted(prompts)]


def make():
    prompts, filters = {}, []
    none = [""] * len(TEST)
    for name, chat, multiturn in (
        ("plain", False, False), ("one_turn", True, False), ("multiturn", True, True),
    ):  # fmt: skip
        _, texts = evaluated(task_folder(TRAIN, TEST), none, 2, chat, multiturn)
        prompts[name] = [json.loads(text) for text in texts] if chat else texts
    asked = [TEST[which] for _, which in ANSWERS]
    found, _ = evaluated(task_folder(TRAIN, asked), [text for text, _ in ANSWERS], 0, False, False)
    graded = {(s["doc_id"], s["filter"]): s for s in found["samples"]["gsm8k_local"]}
    for i, (text, which) in enumerate(ANSWERS):
        strict, flexible = graded[i, "strict-match"], graded[i, "flexible-extract"]
        filters.append(
            {
                "answer": text,
                "target": TEST[which]["answer"],
                "strict": strict["filtered_resps"][0],
                "flexible": flexible["filtered_resps"][0],
                "strict_match": strict["exact_match"],
                "flexible_match": flexible["exact_match"],
            }
        )
    content = {"train": TRAIN, "test": TEST, "prompts": prompts, "filters": filters}
    text = json.dumps(content, indent=1) + "\n"
    (HERE / "gsm8k.json").write_text(text, encoding="utf-8")
    try:
        from alpaca_eval.utils import random_seeded_choice
    except ImportError:
        return
    for instruction in ("one", "three", "four", "five"):
        seed = "is_switched_outputs" + instruction + "0"
        print(instruction, random_seeded_choice(seed=seed, choices=[False, True]))


def judge_again(official, test):
    lines = (official / "samples_gsm8k.jsonl").read_text(encoding="utf-8").split("\n")
    samples = [json.loads(line) for line in lines if line]
    rows = [json.loads(line) for line in test.read_text(encoding="utf-8").split("\n") if line]
    answers = {sample["doc_id"]: sample["resps"][0][0] for sample in samples}
    kept = [rows[i] for i in sorted(answers)]
    said = [answers[i] for i in sorted(answers)]
    found, _ = evaluated(task_folder(TRAIN, kept), said, 0, False, False)
    results = found["results"]["gsm8k_local"]
    for ours, theirs in (("strict", "strict-match"), ("flexible", "flexible-extract")):
        own = sum(sample["exact_match"][ours] for sample in samples) / len(samples)
        other = results[f"exact_match,{theirs}"]
        print(f"{ours}: ours {own:.6f}, lm-evaluation-harness {other:.6f}, n = {len(samples)}")
        assert abs(own - other) < 1e-12


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("official", type=Path, nargs="?")
    parser.add_argument("test", type=Path, nargs="?")
    given = parser.parse_args()
    if given.official:
        judge_again(given.official, given.test)
    else:
        make()
