"""The small runs that faults are put into, and how two of them differ."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from children import Child, Ended

from ssppo_jax.runs.report import build

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "oracles")]

from http_judge import reply, serving, shown  # noqa: E402
from resuming import files_of, log_of  # noqa: E402

SMALL = (
    "data.heldout=2",
    "data.prompt_buckets=256",
    "similarity.name=token_jaccard",
    "sampling.num_samples=2",
    "sampling.max_new_tokens=6",
    "train.prompts_per_iteration=8",
    "train.batch_size=4",
    "train.micro_batches=1",
    "train.term_norms=false",
)
KINDS = {
    "pair": (),
    "group": ("loss.name=sspo", "sampling.num_samples=3"),
    "opponent": ("loss.name=nash_md",),
    "lora": ("lora.rank=4",),
    "judge": ("oracle.name=judge", "oracle.model=longer", "oracle.retry_delay=0.1"),
}
ROWS = {"group": "groups", "opponent": "opponents"}


class Outcome(NamedTuple):
    """One try: what was done, and why its end is bad (None: it is good)."""

    what: str
    bad: str | None


def command(kind: str, workdir: Path, *more: str) -> list[str]:
    """The command line of a small run."""
    settings = {s.partition("=")[0]: s for s in (*SMALL, *KINDS[kind], *more)}
    if kind == "judge":
        settings |= {
            "url": f"oracle.base_url={os.environ['FAULTS_JUDGE']}",
            "replies": f"oracle.replies={workdir / 'replies.jsonl'}",
        }
    keys = [f"--config.{setting}" for setting in settings.values()]
    return ["train", "--config=smoke", f"--workdir={workdir}", *keys]


def start(
    kind: str,
    workdir: Path,
    *more: str,
    options: tuple[str, ...] = (),
    report: bool = False,
    before: Callable[[], object] = lambda: None,
) -> Child:
    """Start a small run in a child, with more settings and options of the command.

    Without `report` it draws none: its figures take as long as the run.
    """

    def prepare() -> None:
        if not report:
            build.build_report = lambda folder: folder
        before()

    return Child([*command(kind, workdir, *more), *options], workdir.parent, before=prepare)


def train(kind: str, workdir: Path, **how) -> Ended:
    """Train a small run in a child to its end."""
    return start(kind, workdir, **how).end()


def difference(workdir: Path, whole: Path, kind: str) -> str | None:
    """How a run differs from the uninterrupted one, but for times; None if it does not."""
    try:
        one, other = (files_of(folder, ROWS.get(kind, "pairs")) for folder in (workdir, whole))
        if kind == "lora":
            weights = Path("adapters") / "adapter_model.safetensors"
            one["adapters"], other["adapters"] = (
                (folder / weights).read_bytes() for folder in (workdir, whole)
            )
    except OSError as error:
        return f"{error.filename} is missing"
    wrong = [f"{name} differs" for name in one if one[name] != other[name]]
    if log_of(workdir) != log_of(whole):
        wrong.append("metrics.jsonl differs")
    wrong += [f"{path.relative_to(workdir)} is left" for path in half_written(workdir)]
    names = {path.name for path in workdir.iterdir()} ^ {path.name for path in whole.iterdir()}
    wrong += [f"{name} is in one of the two alone" for name in sorted(names)]
    return ", ".join(wrong) or None


def half_written(folder: Path) -> list[Path]:
    """What a kill left under a temporary name."""
    return [p for p in folder.rglob("*") if re.search(r"\.tmp($|-)|^tmp_", p.name)]


def serve_judge(port_file: int) -> None:
    """Play a judge that prefers the longer text; never returns."""

    def longer(body, _):
        first, second = (a or b for a, b in shown(body))
        return 200, reply("m" if len(first) > len(second) else "M"), {}

    with serving(longer) as (_, url):
        os.write(port_file, url.encode())
        os.close(port_file)
        os.read(0, 1)  # until the parent is gone
    os._exit(0)
