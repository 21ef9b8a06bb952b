"""Run the command line: python -m ssppo_jax train, evaluate, generate and more."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ssppo_jax import __version__
from ssppo_jax.config import expanded
from ssppo_jax.config.options import (
    Options,
    as_utf_8,
    option_of,
    path_on_disk,
    path_or_address,
    positive_number,
    split_overrides,
    whole_number,
)
from ssppo_jax.distributed import backend
from ssppo_jax.errors import ConfigError, Interrupted, LostProcess, UserError, WriteError
from ssppo_jax.files import to_json, writing

INTERRUPTED = 75  # sysexits EX_TEMPFAIL: run the same command again
STOPPED = 130  # 128 + SIGINT: Ctrl-C where there is nothing to save
BROKEN_PIPE = 141  # 128 + SIGPIPE: whoever read the output has left

RENAMED = {("plan", "--sweep"): "--search"}  # a command's options of earlier releases

MODELS = """A model is embedded:smollm2, a Hugging Face folder or repo id, a .gguf file, or a run's
checkpoint folder (RUN/checkpoints/step_00000012). A config is the name of one of the package's
(quickstart), a path, or a module. Every key of a config is an option: --config.KEY=VALUE;
`train --config=NAME --help` lists them with their meaning and value."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code.

    0 is success, 65 bad data, 70 a failed gate, 74 a full disk, 75 interrupted, 78 a bad
    configuration, 130 stopped by Ctrl-C with nothing to save.
    """
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(encoding="utf-8")  # JSON is, also where the locale says ASCII
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("absl", "jax", "transformers", "orbax", "matplotlib", "gguf", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns that torch is missing
    try:
        code = _run(argv)
        _flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if isinstance(error, LostProcess):
            os._exit(error.exit_code)  # at its end JAX would wait for the other, and abort
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr, flush=True)
        return STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more is flushed
        return BROKEN_PIPE


def _flush() -> None:
    """Write out what was printed."""
    try:
        with writing("standard output"):
            sys.stdout.flush()
    except WriteError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more is flushed
        raise


def _run(argv: list[str]) -> int:
    argv = [as_utf_8(arg) for arg in argv]
    parser, commands = _parsers()
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(parser.format_help())
        return 0
    if argv[0] == "--version":
        print(f"ssppo_jax {__version__}")
        return 0
    if argv[0] not in commands:
        near = difflib.get_close_matches(argv[0], commands, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"no command {argv[0]!r}; {hint}there is: {', '.join(commands)}")
    backend.leave_out_tpu()
    command = commands[argv[0]]
    rest, overrides = split_overrides(argv[1:])
    if {"-h", "--help"} & set(rest):
        print(command.format_help())
        if command.takes_config:
            print(command.config_help(rest, overrides))
        return 0
    if overrides and not command.takes_config:
        raise ConfigError(f"{argv[0]} takes no --config keys")
    args, unknown = command.parse_known_args(rest)
    if unknown:
        if (argv[0], unknown[0]) in RENAMED:
            raise ConfigError(f"{argv[0]} {unknown[0]} is now {RENAMED[argv[0], unknown[0]]}")
        near = difflib.get_close_matches(unknown[0].partition("=")[0], command.flags, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"{argv[0]} takes no {unknown[0]!r}; {hint}it takes {', '.join(command.flags)}"
            + (" and --config.KEY=VALUE" if command.takes_config else "")
        )
    return command.run(args, overrides)


# ---- options -------------------------------------------------------------------------------------


class _Command(Options):
    """Hold the options of a command and what it does."""

    run: Callable[[argparse.Namespace, dict[str, str]], int]
    config_help: Callable[[list[str], dict[str, str]], str]  # of a command that takes a config
    takes_config = False


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, _Command]]:
    parser = argparse.ArgumentParser(
        "python -m ssppo_jax", description="Self-play preference and soft sequence policy training."
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.epilog = MODELS
    subparsers = parser.add_subparsers(metavar="COMMAND", parser_class=_Command)
    commands: dict[str, _Command] = {}

    def command(name: str, run, text: str, /, **required: str) -> _Command:
        found = subparsers.add_parser(
            name, help=text, description=text, epilog=MODELS, allow_abbrev=False
        )
        found.run, found.config_help = run, _config_help
        found.takes_config = "config" in required
        for flag, meaning in required.items():
            kind: Callable[[str], str] = str
            if flag in ("workdir", "output"):
                kind = path_or_address if name == "train" else path_on_disk
            found.add_argument(f"--{flag}", required=True, help=meaning, type=kind)
        commands[name] = found
        return found

    config = "name, path or module of a config; NAME:ARG passes an argument"
    workdir = "run folder, or s3://BUCKET/RUN or gs://BUCKET/RUN"
    one = command("train", _train, "train by self-play; the same command continues a run",
                  config=config, workdir=workdir)  # fmt: skip
    one.add_argument("--profile", action="store_true", help="trace one iteration into profile/")
    group = one.add_argument_group("several processes (nothing is needed under srun or mpirun)")
    group.add_argument("--coordinator", default="", help="HOST:PORT, or auto")
    group.add_argument("--num_processes", default="", help="how many there are")
    group.add_argument("--process_id", default="", help="this one, from 0")

    command("fit", _fit, "fit a reward model or a PairRM on preference pairs (fit.head)",
            config=config, workdir="folder of the fit")  # fmt: skip

    one = command("evaluate", _evaluate, "estimate the held-out win rate of two models",
                  config=config, candidate="a model", baseline="a model")  # fmt: skip
    one.add_argument("--output", type=path_on_disk, help="folder for the result and all texts")

    one = command("benchmark", _benchmark, "ask a model a benchmark's questions and grade it",
                  name="gsm8k, alpaca_eval, ...; a wrong name lists them")  # fmt: skip
    one.takes_config, one.config_help = True, _benchmark_help
    one.add_argument("--model", default="", help="a model")
    one.add_argument("--judge", default="", help="an endpoint's model, or local:SOURCE")
    one.add_argument("--config", default="", help="config whose keys are read")
    one.add_argument("--output", type=path_on_disk, help="folder of the result")
    one.add_argument("--dry-run", action="store_true", help="print requests and tokens only")

    one = command("generate", _generate, "write responses as JSON lines", config=config)
    one.add_argument("--model", help="a model in place of model.source")
    one.add_argument("--prompt", action="append", help="a prompt; repeat for several")
    one.add_argument("--prompts", default="", help="JSONL file of prompts")
    one.add_argument("--output", type=path_on_disk, help="file; default: standard output")

    one = command("chat", _chat, "talk with a model in the terminal", config=config)
    one.add_argument("--model", help="a model in place of model.source")

    one = command("convert", _convert, "write a model as a Hugging Face folder or a .gguf file",
                  input="a model", output="new folder, or new file NAME.gguf")  # fmt: skip
    dtypes = ("source", "float32", "bfloat16", "float16")
    one.add_argument("--dtype", default="source", choices=dtypes)

    command("report", _report, "write a run's report, one HTML file", workdir="folder of a run")

    one = command("push", _push, "publish a model folder on the Hugging Face Hub",
                  folder="folder of a model or of adapters", repo="owner/name")  # fmt: skip
    one.add_argument("--public", action="store_true", help="a public repository")

    command("runs", _runs, "list runs with their status and last numbers",
            workdir="folder that holds runs")  # fmt: skip

    one = command("compare", _compare, "put runs or benchmark results side by side")
    several = "a run, a result, or a folder of them; repeat for several"
    one.add_argument("--workdir", action="append", default=[], type=path_on_disk, help=several)
    one.add_argument("--output", type=path_on_disk, help="folder for the page")
    one.add_argument("--mixed", action="store_true", help="also with different settings")

    one = command("sweep", _sweep, "train a grid of points and seeds: a config with sweep(add)",
                  config=config, workdir="folder of the sweep")  # fmt: skip
    one.add_argument(
        "--jobs", type=whole_number, help="runs at one time; default: 1, and all on SLURM"
    )
    one.add_argument(
        "--launcher",
        choices=("processes", "slurm", "local"),
        default="processes",
        help="children of this process, or jobs of submitit",
    )
    one.add_argument(
        "--job_option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of submitit, such as partition=gpu or timeout_min=60; repeat for several",
    )
    one.add_argument("--dry-run", action="store_true", help="list the runs only")

    one = command("plan", _plan, "compile a config's steps for a described slice or node",
                  config=config, topology="such as v5e:4x4 or h100:8")  # fmt: skip
    one.add_argument("--model", help="a model, a config.json, or llama3_8b")
    one.add_argument("--phases", default="relay,generate,score,train", help="which steps")
    one.add_argument("--search", action="store_true", help="search layouts by an iteration's time")
    one.add_argument("--prompts", type=whole_number, default=0, help="of an iteration")
    one.add_argument("--lengths", action="store_true", help="padding of long-tailed responses")
    one.add_argument("--price", type=positive_number, default=0.0, help="of a chip-hour")
    one.add_argument("--output", type=path_on_disk, help="folder for plan.json")
    return parser, commands


def _config_help(rest: list[str], overrides: dict[str, str]) -> str:
    from ssppo_jax import schema

    name = option_of(rest, "--config")
    config = schema.load(name, overrides) if name else schema.base_config()
    where = f" of {name}" if name else ", at their defaults"
    return f"config keys{where}\n{schema.help_text(config)}"


def _benchmark_help(rest: list[str], overrides: dict[str, str]) -> str:
    from ssppo_jax.benchmark import settings

    name = option_of(rest, "--name") or "gsm8k"
    config = settings.load(name, overrides, judge=option_of(rest, "--judge"))
    return f"config keys of {name}\n{settings.help_text(config)}"


# ---- commands ------------------------------------------------------------------------------------


def _load(args: argparse.Namespace, overrides: dict[str, str]):
    """Load the config with its overrides and check it on this machine's devices.

    A --model stands in place of model.source."""
    import jax

    from ssppo_jax import schema

    backend.keep_compiled()
    config = schema.load(args.config, overrides, jax.device_count())
    if getattr(args, "model", None):
        config.model.source = args.model
    return config


def _folder(path: str | Path) -> Path:
    """Make the folder now: a path that cannot be written to should cost a second, not a run."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{path}: no folder can be made there ({error.strerror}); give another"
        ) from None
    try:
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ConfigError(
            f"{path}: no file can be written there ({error.strerror}); give another folder"
        ) from None
    return Path(path)


def _train(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from ssppo_jax.distributed import hosts

    place = hosts.place_of(args.coordinator, args.num_processes, args.process_id)
    if place is not None:
        hosts.start(place)
    config = _load(args, overrides)
    from jax.errors import JaxRuntimeError

    from ssppo_jax.runs.folder import no_trace_of_failure
    from ssppo_jax.runs.mirror import Mirror, is_address
    from ssppo_jax.runs.report.build import build_report
    from ssppo_jax.training.train import train

    try:
        with contextlib.ExitStack() as stack:
            if is_address(args.workdir):
                mirror = stack.enter_context(Mirror(args.workdir))
                workdir, on_saved = _folder(mirror.folder), mirror.push
            else:
                stack.enter_context(no_trace_of_failure(Path(args.workdir)))
                workdir, on_saved = _folder(args.workdir), lambda: None
            result = train(config, workdir, profile=args.profile, on_saved=on_saved)
            if hosts.is_first():
                print(to_json(result))
                try:
                    print(f"report: {build_report(workdir)}")
                except WriteError as error:  # the run is done and its result is said all the same
                    print(f"no report: {error}", file=sys.stderr)
    except Interrupted:
        return _stopped(args.workdir)
    except (JaxRuntimeError, ValueError) as error:  # where it is noticed decides which
        told = hosts.lost(error)
        if told is None:
            raise
        raise told from error
    return 0


def _stopped(workdir: str) -> int:
    """Say what a stopped run or fit left, and return the exit code."""
    said = f"stopped and saved; the same command continues {workdir}"
    if "://" not in workdir and not Path(workdir).exists():
        said = "stopped before there was anything to save; the same command begins again"
    print(said, file=sys.stderr)
    return INTERRUPTED


def _fit(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    config = _load(args, overrides)
    from ssppo_jax.runs.folder import no_trace_of_failure
    from ssppo_jax.training.fit.loop import fit

    try:
        with no_trace_of_failure(Path(args.workdir)):
            result = fit(config, _folder(args.workdir))
    except Interrupted:
        return _stopped(args.workdir)
    print(to_json(result))
    return 0


def _evaluate(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    config = _load(args, overrides)
    from ssppo_jax.evaluate import evaluate

    output = _folder(args.output) if args.output else None
    result = evaluate(config, candidate=args.candidate, baseline=args.baseline, output=output)
    shown = ("candidate", "baseline", "win_rate", "rewards", "oracle", "oracles", "reference")
    print(to_json({key: result[key] for key in shown}))
    print(f"{result['summary']} (95% intervals over {result['win_rate']['n']} prompts)")
    return 0


def _benchmark(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    backend.keep_compiled()
    from ssppo_jax.benchmark.command import benchmark_command

    return benchmark_command(
        args.name,
        overrides,
        model=args.model,
        judge=args.judge,
        spec=args.config,
        output=args.output or "",
        dry=args.dry_run,
    )


def _generate(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    config = _load(args, overrides)
    from ssppo_jax.distributed.stop import StopSignal
    from ssppo_jax.inference.generate import respond, respond_into

    if not args.output:
        rows = respond(config, args.prompt, args.prompts)
        with writing("standard output"):
            sys.stdout.write("".join(to_json(row) + "\n" for row in rows))
        return 0
    output = Path(args.output)
    _folder(output.parent)
    if output.is_dir():
        raise ConfigError(
            f"--output={output} is a folder; give a file, such as {output / 'responses.jsonl'}"
        )
    try:
        with StopSignal() as stop:
            count = respond_into(output, config, args.prompt, args.prompts, stopped=stop.agreed)
    except Interrupted:
        print(f"stopped; the same command continues {output}", file=sys.stderr)
        return INTERRUPTED
    print(f"{output}: {count} responses", file=sys.stderr)
    return 0


def _chat(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    config = _load(args, overrides)
    from ssppo_jax.inference.chat import chat

    chat(config)
    return 0


def _convert(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    import numpy as np

    from ssppo_jax.weights import hf
    from ssppo_jax.weights.gguf_export import save_gguf
    from ssppo_jax.weights.source import resolve

    _folder(Path(args.output).parent)
    folder = resolve(args.input)
    if args.output.endswith(".gguf"):
        print(f"wrote {save_gguf(folder, args.output, dtype=args.dtype)}")
        return 0
    arch = hf.read_arch(folder)
    dtype = hf.stored_dtype(folder) if args.dtype == "source" else np.dtype(args.dtype)
    params = hf.load_params(folder, arch, dtype=dtype)
    hf.save_params(params, arch, args.output, tokenizer_from=folder)
    print(f"wrote {args.output}")
    return 0


def _report(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from ssppo_jax.runs.report.build import build_report

    if not Path(args.workdir).is_dir():
        raise ConfigError(f"--workdir={args.workdir}: no such folder; give the folder of a run")
    folder = _folder(args.workdir)
    if not any((folder / name).is_file() for name in ("config.json", "metrics.jsonl")):
        raise ConfigError(
            f"--workdir={args.workdir} is no run's folder; `runs --workdir={args.workdir}` lists"
            " those in it"
        )
    print(f"report: {build_report(folder)}")
    return 0


def _push(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from ssppo_jax.weights.hub import push

    print(push(expanded(args.folder), args.repo, private=not args.public))
    return 0


def _runs(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from ssppo_jax.runs.listing import list_runs, table

    folder = Path(args.workdir)
    if not folder.is_dir():
        raise ConfigError(f"--workdir={folder}: no such folder; give one that holds runs")
    found = list_runs(folder)
    if not found:
        raise ConfigError(f"--workdir={folder}: there is no run in it or below it")
    print(table(found, folder))
    return 0


def _compare(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from ssppo_jax.benchmark.compare import compare_command

    output = str(_folder(args.output)) if args.output else ""
    return compare_command(args.workdir, mixed=args.mixed, output=output)


def _sweep(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from ssppo_jax.sweep.run import sweep

    if args.job_option and args.launcher == "processes":
        raise ConfigError("--job_option is for --launcher=slurm or local")
    pairs = [option.partition("=") for option in args.job_option]
    if not all(key and equals for key, equals, _ in pairs):
        raise ConfigError("--job_option: write each as KEY=VALUE, such as partition=gpu")
    workdir = Path(args.workdir) if args.dry_run else _folder(args.workdir)
    return sweep(
        args.config,
        workdir,
        overrides,
        jobs=args.jobs,
        launcher=args.launcher,
        options={key: value for key, _, value in pairs},
        dry_run=args.dry_run,
    )


def _plan(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing is run: the slice is only described
    from ssppo_jax.plan.command import plan_command
    from ssppo_jax.plan.steps import PHASES
    from ssppo_jax.plan.topology import machine_of

    phases = args.phases.split(",")
    if not set(phases) <= set(PHASES):
        raise ConfigError(f"--phases={args.phases}: of {', '.join(PHASES)}, separated by commas")
    return plan_command(
        args.config,
        overrides,
        machine_of(args.topology),
        model=args.model or "",
        phases=phases,
        searched=args.search,
        prompts=args.prompts,
        price=args.price,
        lengths=args.lengths,
        output=_folder(args.output) if args.output else None,
    )


if __name__ == "__main__":
    sys.exit(main())
