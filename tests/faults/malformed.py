"""Input that is wrong: each try ends with an exit code and a message, never with a traceback.

A case is a name, a command, and what has to be written for it first."""

import base64
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from children import TOLD, run
from kills import reference
from safetensors.numpy import load_file, save_file
from small import SMALL, Outcome, command

from ssppo_jax.weights.source import resolve

Make = Callable[[Path], object]
CASES: dict[str, tuple[list[str], Make]] = {}  # FOLDER in an argument is the case's own folder
KEYS = [f"--config.{key}" for key in SMALL]
GENERATE = ["generate", "--config=smoke", "--prompt=hello", *KEYS, "--model=FOLDER/model"]


def case(name: str, argv: list[str], make: Make = lambda folder: None) -> None:
    assert name not in CASES, name
    CASES[name] = (argv, make)


def refused(tries: int, folder: Path, rng: random.Random) -> Iterator[Outcome]:
    """Give the package every case, or a random choice of them."""
    for name in list(CASES) if tries >= len(CASES) else rng.sample(list(CASES), tries):
        argv, make = CASES[name]
        own = folder / "malformed"
        own.mkdir()
        make(own)
        if "a run with" in name:
            whole = reference("pair", folder)[0]
            shutil.copytree(whole, own / "run", ignore=shutil.ignore_patterns("result.json"))
            make(own / "run")
        ended = run([argument.replace("FOLDER", str(own)) for argument in argv], own)
        yield Outcome(name, ended.trouble(*TOLD))
        shutil.rmtree(own)


# ---- the command line ----------------------------------------------------------------------------

TRAIN = ["train", "--config=smoke", "--workdir=FOLDER/run"]
for words in (
    "trian",
    "train",
    "train --config",
    "train --config=smoke",
    "train --config=nosuch --workdir=FOLDER/run",
    "train --config=FOLDER/none.py --workdir=FOLDER/run",
    "train --config=FOLDER --workdir=FOLDER/run",
    "train --config=os.path --workdir=FOLDER/run",
    "train --config=smoke:more --workdir=FOLDER/run",
    "train --config= --workdir=FOLDER/run",
    "train --config=smoke --workdir=FOLDER/run --config=smoke",
    "train --config=smoke --workdir=FOLDER/run --workdir=FOLDER/two",
    "train --config=smoke --workdir=FOLDER/run --bogus",
    "train --config=smoke --workdir=FOLDER/run more",
    "train --config=smoke --workdir=FOLDER/run --num_processes=2",
    "train --config=smoke --workdir=FOLDER/run --coordinator=h:1 --num_processes=2 --process_id=2",
    "train --config=smoke --workdir=FOLDER/run --coordinator=h:1 --num_processes=x --process_id=0",
    "train --config=smoke --workdir=FOLDER/run --config.seed",
    "train --config=smoke --workdir=FOLDER/run --config.seed=1 --config.seed=2",
    "train --config=smoke --workdir=FOLDER/run --config.=1",
    "train --config=smoke --workdir=/proc/run",
    "evaluate --config=smoke --candidate=random:tiny",
    "evaluate --config=smoke --candidate=random:tiny --baseline=FOLDER/none",
    "generate --config=smoke --prompt=hello --model=FOLDER/none",
    "convert --input=FOLDER/none --output=FOLDER/out",
    "convert --input=random:tiny --output=FOLDER",
    "convert --input=random:tiny --output=FOLDER/out --dtype=int8",
    "report --workdir=FOLDER/none",
    "report --workdir=FOLDER --config.seed=1",
    "sweep --config=smoke --workdir=FOLDER/sweep",
    "sweep --config=smoke --workdir=FOLDER/sweep --jobs=0",
    "plan --config=smoke --topology=none",
    "plan --config=smoke --topology=v5e:0x0",
    "plan --config=smoke --topology=v5e:2x2 --phases=sleep",
    "plan --config=smoke --topology=v5e:2x2 --model=FOLDER/none",
):
    make = (lambda f: (f / "full").touch()) if words.endswith("--output=FOLDER") else None
    case(f"command: {words}", words.split(), *([make] if make else []))
for words in (
    "report --workdir=FOLDER/file",
    "train --config=smoke --workdir=FOLDER/file",
    "train --config=smoke --workdir=FOLDER/file/run",
    "evaluate --config=smoke --candidate=random:tiny --baseline=random:tiny --output=FOLDER/file",
    "generate --config=smoke --prompt=x --model=FOLDER/file",
):
    case(f"a file for a folder: {words}", words.split(), lambda f: (f / "file").touch())

# ---- configs -------------------------------------------------------------------------------------

for name, text in {
    "of no Python": "def get_config(:\n",
    "that raises": "def get_config():\n    raise RuntimeError('no')\n",
    "that returns nothing": "def get_config():\n    pass\n",
    "that returns a number": "def get_config():\n    return 3\n",
    "that returns an empty config": "from ml_collections import ConfigDict as get_config\n",
    "without get_config": "x = 1\n",
    "that imports what is not there": "import nothing_of_this_name\n",
    "with another key": "from ssppo_jax.schema import base_config\n"
    "def get_config():\n    c = base_config()\n    c.bogus = 1\n    return c\n",
    "that is not UTF-8": "x = '\udcff'\n",
}.items():
    case(
        f"a config {name}",
        ["train", "--config=FOLDER/c.py", "--workdir=FOLDER/run"],
        lambda f, t=text: (f / "c.py").write_bytes(t.encode(errors="surrogateescape")),
    )

SETTINGS = """seed=-1 seed=x seed=nan seed=1.5 seed= model.source= model.source=embedded:none
    model.source=random:huge model.source=org/none model.dtype=float13 model.param_dtype=int8
    model.remat=some model.remat=offload model.attention=flash model.attention=splash
    model.attention=cudnn model.logprob_chunk=0 model.decode_unroll=-1 mesh.data=0 mesh.data=3
    mesh.tensor=7 mesh.fsdp=-2 distributed.timeout=0 distributed.timeout=nan data.heldout=-1
    data.heldout=100000 data.max_prompt_length=0 data.prompt_buckets=0 data.prompt_buckets=256,128
    data.prompt_buckets=x data.prompt_buckets=() data.source.name=none data.source.name=jsonl
    data.source.path=x data.source=jsonl sampling.num_samples=0 sampling.num_samples=1
    sampling.temperature=-1 sampling.temperature=inf sampling.top_p=0 sampling.top_p=1.5
    sampling.top_p=nan sampling.top_k=-1 sampling.min_p=2 sampling.max_new_tokens=0
    sampling.batch_size=-1 sampling.refill=2 oracle.name=none oracle.target=x oracle.bogus=1
    oracle.max_failed_fraction=2 pairs.gate_level=some pairs.gate.name=none
    pairs.include_self=maybe pairs.win_rate_estimator=some similarity.name=none
    similarity.max_length=0 train.iterations=0 train.iterations=1.5
    train.micro_batches=3 train.micro_batches=0 train.reference=some train.epochs=0
    train.sampler_bound=-1 train={} lora.rank=-1 lora.alpha=nan lora.dropout=1.5
    eval.num_samples=0 eval.temperature=-1 checkpoint.keep=1 checkpoint.every=-1
    optimizer.name=adamm optimizer.learning_rate=-1 optimizer.learning_rate=nan
    optimizer.warmup_ratio=2 optimizer.schedule=step optimizer.bogus=1 loss.name=spo loss.beta=0
    loss.beta=-1 loss.beta=nan loss.beta= loss.bogus=1 loss.repulsion_layer=some
    advantage.name=none bogus=1 seed.more=1"""
for setting in SETTINGS.split():
    rest = [key for key in KEYS if key.split("=")[0] != f"--config.{setting.split('=')[0]}"]
    case(f"setting: {setting}", [*TRAIN, *rest, f"--config.{setting}"])
for settings in (
    "mesh.data=-1 mesh.fsdp=-1",
    "similarity.name=relu_cosine similarity.encoder=FOLDER/none",
    "lora.rank=4 lora.targets=[",
    "lora.rank=4 lora.targets=nothing",
    "oracle.name=judge oracle.base_url=ftp://host",
    "oracle.name=judge oracle.model=x oracle.base_url=http://localhost:9 oracle.attempts=1",
    "oracle.name=reward_model oracle.source=FOLDER/none",
    "oracle.name=pairrm oracle.source=FOLDER/none",
    "data.source.name=jsonl data.source.path=FOLDER/none.jsonl",
    "data.source.name=jsonl data.source.path=FOLDER",
    "data.source.name=tfds data.source.data_dir=FOLDER",
):
    given = [f"--config.{s}" for s in settings.split()]
    taken = [g.split("=")[0] for g in given]
    case(f"settings: {settings}", TRAIN + [k for k in KEYS if k.split("=")[0] not in taken] + given)

# ---- prompts -------------------------------------------------------------------------------------

GOOD = "".join(json.dumps({"id": str(n), "prompt": f"What is {n}?"}) + "\n" for n in range(12))
for name, line in {
    "that is no JSON": b"{oops",
    "that is a list": b"[1, 2]",
    "that is a number": b"3",
    "that is empty": b"",
    "with a NUL": b'{"prompt": "a\0b"}',
    "that is not UTF-8": b'{"prompt": "\xff"}',
    "in UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "without a prompt": b'{"text": "a"}',
    "with a null prompt": b'{"prompt": null}',
    "with a number for a prompt": b'{"prompt": 3}',
    "with an empty prompt": b'{"prompt": ""}',
    "with no turns": b'{"messages": []}',
    "with a turn without a role": b'{"messages": [{"content": "a"}]}',
    "with a turn without content": b'{"messages": [{"role": "user"}]}',
    "with null content": b'{"messages": [{"role": "user", "content": null}]}',
    "with a list of contents": b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
    "with an unknown role": b'{"messages": [{"role": "cat", "content": "a"}]}',
    "with a turn that is a text": b'{"messages": ["a"]}',
    "with messages that are a text": b'{"messages": "a"}',
    "that ends with the assistant": b'{"messages": [{"role": "user", "content": "a"},'
    b' {"role": "assistant", "content": "b"}]}',
    "with an id twice": b'{"id": "3", "prompt": "again"}',
    "with a key twice": b'{"prompt": "a", "prompt": "b"}',
    "with NaN": b'{"prompt": "a", "n": NaN}',
    "with a list for an id": b'{"id": [1], "prompt": "a"}',
    "with a lone surrogate": b'{"prompt": "a\\ud800"}',
    "nested very deep": b'{"prompt": "a", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "with a number of 5,000 digits": b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}",
    "that is torn": b'{"prompt": "a", "n": "b',
}.items():
    case(
        f"a line {name}",
        [*TRAIN, *KEYS, "--config.data.source.name=jsonl", "--config.data.source.path=FOLDER/p"],
        lambda f, b=line: (f / "p").write_bytes(GOOD.encode() + b + b"\n"),
    )
for name, content in {
    "that is empty": "",
    "of one prompt": '{"prompt": "a"}\n',
    "of prompts that are too long": "".join(
        json.dumps({"prompt": f"{n} " * 300}) + "\n" for n in range(100, 112)
    ),
}.items():
    case(
        f"a file of prompts {name}",
        [*TRAIN, *KEYS, "--config.data.source.name=jsonl", "--config.data.source.path=FOLDER/p"],
        lambda f, t=content: (f / "p").write_text(t),
    )

# ---- models --------------------------------------------------------------------------------------


def model(change: Make) -> Make:
    """A copy of the tiny model, changed."""

    def make(folder: Path) -> None:
        shutil.copytree(resolve("random:tiny"), folder / "model")
        change(folder / "model")

    return make


def configured(**values) -> Make:
    """Change keys of config.json; None deletes one."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | values
        config = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))

    return change


def written(name: str, content: bytes) -> Make:
    return lambda folder: (folder / name).write_bytes(content)


def gone(*names: str) -> Make:
    return lambda folder: [(folder / name).unlink() for name in names]


def weights(change: Callable[[dict], object]) -> Make:
    def make(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return make


def cut(name: str, share: float) -> Make:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return change


def indexed(weight_map: dict) -> Make:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(index)

    return change


def template(text: str) -> Make:
    return written("chat_template.jinja", text.encode())


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
for name, change in {
    "without config.json": gone("config.json"),
    "whose config.json is no JSON": written("config.json", b"{"),
    "whose config.json is a list": written("config.json", b"[]"),
    "whose config.json is nested very deep": written("config.json", b"[" * 100_000),
    "of an unknown type": configured(model_type="cat"),
    "without a type": configured(model_type=None),
    "without hidden_size": configured(hidden_size=None),
    "with a text for hidden_size": configured(hidden_size="many"),
    "with a negative hidden_size": configured(hidden_size=-8),
    "with another hidden_size": configured(hidden_size=48),
    "without layers": configured(num_hidden_layers=0),
    "with more layers": configured(num_hidden_layers=9),
    "with heads that do not divide": configured(num_attention_heads=3),
    "with no heads": configured(num_attention_heads=0),
    "with no vocabulary": configured(vocab_size=0),
    "with a larger vocabulary": configured(vocab_size=999),
    "with an unknown activation": configured(hidden_act="cat"),
    "with an unknown rope": configured(rope_scaling={"rope_type": "cat", "factor": 2.0}),
    "with rope scaling that is a text": configured(rope_scaling="yes"),
    "that is quantised": configured(quantization_config={"quant_method": "gptq"}),
    "with code of its own": configured(auto_map={"AutoModelForCausalLM": "m.M"}, model_type="m"),
    "with a text for rope_theta": configured(rope_theta="large"),
    "with null eos and text bos": configured(bos_token_id="a"),
    "without weights": gone("model.safetensors"),
    "with pickled weights": pickled,
    "with empty weights": written("model.safetensors", b""),
    "with garbage for weights": written("model.safetensors", base64.b64decode("qg==") * 999),
    "with a huge header": written("model.safetensors", b"\xff" * 8 + b"{}"),
    "with weights cut in half": cut("model.safetensors", 0.5),
    "with a tensor less": weights(lambda t: t.pop(NORM)),
    "with a tensor more": weights(lambda t: t.update(more=np.ones(3, np.float32))),
    "with a tensor of another shape": weights(lambda t: t.update({NORM: np.ones(3, np.float32)})),
    "with a tensor of integers": weights(lambda t: t.update({NORM: t[NORM].astype(np.int32)})),
    "with NaN in its weights": weights(lambda t: t.update({EMBEDDING: t[EMBEDDING] * np.nan})),
    "whose index leads elsewhere": indexed({EMBEDDING: "../../shard.safetensors"}),
    "whose index names no file": indexed({EMBEDDING: "none.safetensors"}),
    "whose index is empty": indexed({}),
    "without a tokenizer": gone("tokenizer.json", "tokenizer_config.json"),
    "whose tokenizer.json is no JSON": written("tokenizer.json", b"{"),
    "whose tokenizer_config.json is a list": written("tokenizer_config.json", b"[]"),
    "whose generation_config.json is no JSON": written("generation_config.json", b"{"),
    "whose generation_config.json has no stop ids": written(
        "generation_config.json", b'{"eos_token_id": "end"}'
    ),
    "whose template does not parse": template("{% for m in %}"),
    "whose template raises": template("{{ raise_exception('no') }}"),
    "whose template divides by zero": template("{{ 1 // 0 }}"),
    "whose template never ends": template("{% for a in range(10 ** 9) %}{{ a }}{% endfor %}"),
    "whose template leaves the sandbox": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
}.items():
    case(f"a model {name}", GENERATE, model(change))
for name, content in {
    "of no bytes": b"",
    "of garbage": b"cat" * 999,
    "that ends early": b"GGUF\x03\0\0\0" + b"\x01\0\0\0\0\0\0\0" * 2,
}.items():
    case(
        f"a GGUF file {name}",
        [a.replace("FOLDER/model", "FOLDER/m.gguf") for a in GENERATE],
        lambda f, b=content: (f / "m.gguf").write_bytes(b),
    )
case("an empty folder for a model", GENERATE, lambda f: (f / "model").mkdir())
case("a checkpoint away from its run", GENERATE,
     lambda f: (f / "model").mkdir() or (f / "model" / "manifest.sha256").touch())  # fmt: skip

# ---- folders of runs -----------------------------------------------------------------------------


def each_checkpoint(act: Make) -> Make:
    return lambda run: [act(c) for c in run.glob("checkpoints/step_*")]


for name, spoil in {
    "a config.json that is no JSON": written("config.json", b"{"),
    "a config.json that is a list": written("config.json", b"[]"),
    "a result.json that is no JSON": written("result.json", b"{"),
    "a baseline.json that is no JSON": written("baseline.json", b"{"),
    "a log that is cut": cut("metrics.jsonl", 0.5),
    "a log that is gone": gone("metrics.jsonl"),
    "verdicts that are none": written("verdicts.jsonl", b"{}\n"),
    "checkpoints that are all damaged": each_checkpoint(written("meta.json", b"{}")),
    "checkpoints without a manifest": each_checkpoint(gone("manifest.sha256")),
    "another configuration": lambda run: None,
}.items():
    more = ["train.epochs=2"] if name == "another configuration" else []
    case(
        f"a run with {name}",
        [a.replace("RUN", "FOLDER/run") for a in command("pair", Path("RUN"), *more)],
        lambda folder, s=spoil: s(folder) if (folder / "config.json").is_file() else None,
    )
