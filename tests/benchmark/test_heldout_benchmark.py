"""The held-out win rate as a benchmark's result: a value for each prompt, so that runs compare."""

import json

from small_runs import configure

from ssppo_jax.benchmark.result import read_result, write_result
from ssppo_jax.benchmark.tasks import heldout as task
from ssppo_jax.evaluate import Estimate
from ssppo_jax.files import write_records


def test_each_prompt_has_its_win_rate_and_a_failed_one_is_counted(tmp_path, monkeypatch):
    def evaluated(config, *, candidate, baseline, output):
        rows = [
            {"stage": stage, "prompt_id": name, "sample": n, "response": f"{stage} {name} {n}"}
            for stage in ("start", "final")
            for name in ("a", "b", "c")
            for n in range(2)
        ]
        write_records(output / "samples.jsonl", rows)
        estimate = Estimate(0.625, 0.5, 0.75, 2)._asdict()
        found = {"win_rate": estimate, "rewards": {}, "prompts": {}}
        return found | {"by_prompt": {"a": 0.5, "b": 0.75}}

    monkeypatch.setattr(task, "evaluate", evaluated)
    benchmark = task.heldout(configure())
    done = benchmark.whole(tmp_path)
    settings = {"protocol": {"benchmark": "heldout"}, "model": {"source": "m"}, "seed": 0}
    write_result(tmp_path, benchmark, settings, done.metrics, [], rows=done.rows)
    grades = read_result(tmp_path).grades()
    assert grades["a"] == {
        "id": "a",
        "answers": ["final a 0", "final a 1"],
        "grade": {"win_rate": 0.5},
    }
    assert grades["b"]["grade"] == {"win_rate": 0.75} and "grade" not in grades["c"]
    record = json.loads((tmp_path / "result.json").read_text())
    assert (record["questions"], record["failures"]) == (3, 1)
    assert record["failure_reasons"] == {"the oracle failed at this prompt": 1}
