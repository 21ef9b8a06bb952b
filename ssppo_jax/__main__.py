"""The command line: python -m ssppo_jax train|generate|evaluate|convert|report|sweep|plan."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import sys
from pathlib import Path

from ssppo_jax.errors import ConfigError, UserError
from ssppo_jax.files import default_cache

INTERRUPTED = 75  # sysexits EX_TEMPFAIL: run the same command again

USAGE = """usage: python -m ssppo_jax COMMAND [options] [--config.KEY=VALUE ...]

commands
  train      --config=FILE[:ARG] --workdir=DIR [--profile]   self-play training; run it again to continue
             of several processes each: [--coordinator=HOST:PORT --num_processes=N --process_id=I], or
             --coordinator=auto on a TPU pod; under SLURM's srun or mpirun nothing is needed
  evaluate   --config=FILE --candidate=M --baseline=M [--output=DIR]   held-out win rate with a 95% interval
  generate   --config=FILE [--model=M] [--prompt=TEXT ...] [--output=FILE]   responses as JSON lines
  convert    --input=M --output=DIR [--dtype=float32|bfloat16]   write a Hugging Face folder
  report     --workdir=DIR    one HTML file with plots and texts
  sweep      --config=FILE --workdir=DIR [--jobs=N] [--dry-run]   grid x seeds of a file that defines sweep(add)
  plan       --config=FILE --topology=v5e:4x4 [--model=M or config.json] [--phases=generate,score,train] [--sweep]
             [--output=DIR]   memory, traffic and roofline of a TPU slice, compiled here without one

M is embedded:smollm2, a Hugging Face folder or repo id, a .gguf file, or a run's checkpoint folder
(RUN/checkpoints/step_00000012).
`train --config=FILE --help` lists every key of that config with its meaning and value.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 65 bad data, 70 a gate failed, 75 interrupted, 78
    bad config."""
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("absl", "jax", "transformers", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    os.environ.setdefault(
        "TRANSFORMERS_VERBOSITY", "error"
    )  # it warns that torch is missing; none is needed
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    leave_out_tpu()
    try:
        if argv[0] not in COMMANDS:
            raise ConfigError(f"no command {argv[0]!r}; there is: {', '.join(COMMANDS)}")
        return COMMANDS[argv[0]](argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parse(
    argv: list[str], command: str, flags: dict[str, str | None], repeated: tuple[str, ...] = ()
):
    """Split argv into --config overrides and this command's own flags (name -> default; None:
    required).

    Raises:
      ConfigError: an argument that is neither.
    """
    overrides, rest = {}, []
    for arg in argv:
        if arg.startswith("--config."):
            key, equals, value = arg.removeprefix("--config.").partition("=")
            if not equals:
                raise ConfigError(f"{arg}: write it as --config.{key}=VALUE")
            overrides[key] = value
        else:
            rest.append(arg)
    parser = argparse.ArgumentParser(
        prog=command, add_help=False, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--help", "-h", action="store_true")
    for name, default in flags.items():
        action = {"action": "append"} if name in repeated else {}
        parser.add_argument(f"--{name}", default=default or None, **action)
    try:
        args, unknown = parser.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{command}: {error}") from None
    if unknown:
        raise ConfigError(
            f"{command} takes no {unknown[0]!r}; it takes --{', --'.join(flags)} and"
            " --config.KEY=VALUE"
        )
    missing = [
        name for name, default in flags.items() if default is None and getattr(args, name) is None
    ]
    if missing and not args.help:
        raise ConfigError(f"{command} needs " + " and ".join(f"--{name}=..." for name in missing))
    return args, overrides


def _switch(argv: list[str], name: str) -> tuple[bool, list[str]]:
    """Whether a flag without a value is given, and the rest."""
    return name in argv, [arg for arg in argv if arg != name]


def _config(args, overrides):
    """Load config and overrides, or print the help of it and return None."""
    import jax

    from ssppo_jax import schema

    if args.help:
        config = schema.load(args.config, overrides) if args.config else schema.base_config()
        print(
            USAGE
            + "\nconfig keys"
            + (f" of {args.config}" if args.config else ", at their defaults")
        )
        print(schema.help_text(config))
        return None
    keep_compiled()
    return schema.load(args.config, overrides, jax.device_count())


def _folder(path: str | Path) -> Path:
    """The folder, made now: a path that cannot be written to should cost a second, not a run."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{path}: no folder can be made there ({error.strerror}); give another"
        ) from None
    return Path(path)


def _train(argv: list[str]) -> int:
    profile, argv = _switch(argv, "--profile")
    places = {"coordinator": "", "num_processes": "", "process_id": ""}
    args, overrides = _parse(argv, "train", {"config": None, "workdir": None} | places)
    from ssppo_jax.distributed import hosts

    place = hosts.place_of(args.coordinator or "", args.num_processes or "", args.process_id or "")
    if place is not None and not args.help:
        hosts.start(place)
    config = _config(args, overrides)
    if config is None:
        return 0
    from ssppo_jax.errors import Interrupted
    from ssppo_jax.report.build import build_report
    from ssppo_jax.train import train

    try:
        result = train(config, _folder(args.workdir), profile=profile)
    except Interrupted:
        print(f"stopped and saved; the same command continues {args.workdir}", file=sys.stderr)
        return INTERRUPTED
    if not hosts.is_first():
        return 0
    report = build_report(Path(args.workdir))
    print(json.dumps(result))
    print(f"report: {report}")
    return 0


def _evaluate(argv: list[str]) -> int:
    args, overrides = _parse(
        argv, "evaluate", {"config": None, "candidate": None, "baseline": None, "output": ""}
    )
    config = _config(args, overrides)
    if config is None:
        return 0
    from ssppo_jax.evaluate import evaluate

    output = _folder(args.output) if args.output else None
    result = evaluate(config, candidate=args.candidate, baseline=args.baseline, output=output)
    print(
        json.dumps(
            {k: result[k] for k in ("candidate", "baseline", "win_rate", "rewards", "oracle")}
        )
    )
    print(f"{result['summary']} (95% intervals over {result['win_rate']['n']} prompts)")
    return 0


def _generate(argv: list[str]) -> int:
    flags = {"config": None, "model": "", "prompt": "", "output": ""}
    args, overrides = _parse(argv, "generate", flags, repeated=("prompt",))
    config = _config(args, overrides)
    if config is None:
        return 0
    from ssppo_jax.evaluate import respond

    if args.output:
        _folder(Path(args.output).parent)
    if args.model:
        config.model.source = args.model
    lines = [json.dumps(row, ensure_ascii=False) for row in respond(config, args.prompt)]
    text = "".join(line + "\n" for line in lines)
    if args.output:
        Path(args.output).write_text(text)
    else:
        sys.stdout.write(text)
    return 0


def _convert(argv: list[str]) -> int:
    args, overrides = _parse(argv, "convert", {"input": None, "output": None, "dtype": "float32"})
    if args.help:
        print(USAGE)
        return 0
    if overrides:
        raise ConfigError("convert takes no --config keys")
    if args.dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"--dtype={args.dtype}: must be float32 or bfloat16")
    import ml_dtypes
    import numpy as np

    from ssppo_jax.weights import hf
    from ssppo_jax.weights.source import resolve

    _folder(Path(args.output).parent)
    folder = resolve(args.input)
    arch = hf.read_arch(folder)
    dtype = np.float32 if args.dtype == "float32" else ml_dtypes.bfloat16
    hf.save_params(
        hf.load_params(folder, arch, dtype=dtype), arch, args.output, tokenizer_from=folder
    )
    print(f"wrote {args.output}")
    return 0


def _report(argv: list[str]) -> int:
    args, overrides = _parse(argv, "report", {"workdir": None})
    if args.help:
        print(USAGE)
        return 0
    if overrides:
        raise ConfigError("report takes no --config keys: a run's configuration is in its folder")
    from ssppo_jax.report.build import build_report

    if not Path(args.workdir).is_dir():
        raise ConfigError(f"--workdir={args.workdir}: no such folder; give the folder of a run")
    print(f"report: {build_report(Path(args.workdir))}")
    return 0


def _sweep(argv: list[str]) -> int:
    dry_run, argv = _switch(argv, "--dry-run")
    args, overrides = _parse(argv, "sweep", {"config": None, "workdir": None, "jobs": "1"})
    if args.help:
        print(USAGE)
        return 0
    if not args.jobs.isdecimal() or int(args.jobs) < 1:
        raise ConfigError(
            f"--jobs={args.jobs}: must be a whole number from 1, the runs at work at one time"
        )
    from ssppo_jax.sweep.run import sweep

    workdir = Path(args.workdir) if dry_run else _folder(args.workdir)
    return sweep(args.config, workdir, overrides, jobs=int(args.jobs), dry_run=dry_run)


def _plan(argv: list[str]) -> int:
    sweep, argv = _switch(argv, "--sweep")
    flags = {
        "config": None,
        "topology": None,
        "model": "",
        "phases": "generate,score,train",
        "output": "",
    }
    args, overrides = _parse(argv, "plan", flags)
    if args.help:
        print(USAGE)
        return 0
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing is run: the slice is only described
    from ssppo_jax.plan.command import plan_command
    from ssppo_jax.plan.steps import PHASES
    from ssppo_jax.plan.topology import devices_of

    phases = args.phases.split(",")
    if not set(phases) <= set(PHASES):
        raise ConfigError(f"--phases={args.phases}: of {', '.join(PHASES)}, separated by commas")
    devices = devices_of(args.topology)
    output = _folder(args.output) if args.output else None
    return plan_command(
        args.config, overrides, devices, model=args.model, phases=phases, sweep=sweep, output=output
    )


def leave_out_tpu() -> None:
    """Keep JAX from looking for a TPU in this process where only the compiler is installed: there
    is no such chip.

    Called before JAX starts. What the user says in JAX_PLATFORMS stands.
    """
    if "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None or _has_chip():
        return
    gpu = any(importlib.util.find_spec(name) for name in ("jax_cuda12_plugin", "jax_cuda13_plugin"))
    os.environ["JAX_PLATFORMS"] = "cuda,cpu" if gpu and os.path.exists("/dev/nvidiactl") else "cpu"


def _has_chip() -> bool:
    """Whether the kernel shows a TPU: as /dev/accel0 or, on newer machines, in a vfio group."""
    return os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")


LARGEST = 4 * 2**30  # bytes of the folder; the longest unused goes first


def keep_compiled() -> None:
    """Let JAX keep what took over a second to compile in $SSPPO_CACHE/compiled, keyed by program,
    options and device.

    Another folder in JAX_COMPILATION_CACHE_DIR stands, and so does JAX_ENABLE_COMPILATION_CACHE=0.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(default_cache() / "compiled"))
        jax.config.update("jax_compilation_cache_max_size", LARGEST)


COMMANDS = {
    "train": _train,
    "evaluate": _evaluate,
    "generate": _generate,
    "convert": _convert,
    "report": _report,
    "sweep": _sweep,
    "plan": _plan,
}


if __name__ == "__main__":
    sys.exit(main())
