"""Every file in configs/ loads and can run; the paper configs hold the paper's numbers and fit a
mesh of 8."""

import json
import math

import jax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from ssppo_jax import config as cfg
from ssppo_jax import runtime, schema
from ssppo_jax.config import load_config
from ssppo_jax.distributed.mesh import AXES, batch_ways, shardings
from ssppo_jax.models.decoder import init_params
from ssppo_jax.models.hf_config import arch_from_hf
from ssppo_jax.optimizer import OPTIMIZERS
from ssppo_jax.weights import hf

FILES = [cfg.CONFIGS / f"{name}.py" for name in cfg.config_names()]
DEVICES = {
    "quickstart": (1, 8),
    "lora_quickstart": (1, 2),
    "smoke": (1, 2, 4),
    "sspo_quickstart": (1, 2, 8),
}  # the others: 8 and more
PAPER = ("llama3_8b_s_sppo", "mistral_7b_s_sppo")
SSPO = "qwen2_5_7b_sspo"

# config.json of the two models, what shapes depend on. meta-llama/Meta-Llama-3-8B-Instruct and
# mistralai/Mistral-7B-Instruct-v0.2.
LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "bos_token_id": 128000,
    "eos_token_id": 128009,
    "tie_word_embeddings": False,
}
MISTRAL = LLAMA | {
    "model_type": "mistral",
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QWEN = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "tie_word_embeddings": False,
}
MODELS = {
    PAPER[0]: (LLAMA, 8_030_261_248),
    PAPER[1]: (MISTRAL, 7_241_732_096),
    SSPO: (QWEN, 7_615_616_512),
}


def load(name):
    return schema.load(str(cfg.CONFIGS / f"{name}.py"), {})


def test_the_configs_are_the_ones_known_here():
    assert {f.stem for f in FILES} >= {"quickstart", "smoke", *MODELS}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_config_loads_locked_says_what_it_is_and_can_run(file):
    config = load_config(str(file))
    for devices in DEVICES.get(file.stem, (8, 16, 64)):
        schema.check(config, devices)
    with pytest.raises(AttributeError):
        config.loss.bta = 1.0
    with pytest.raises(AttributeError):
        config.trian = 1
    assert file.read_text().startswith('"""')
    assert config.is_type_safe and set(cfg.flatten(config)) >= {key.path for key in schema.KEYS}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_two_loads_are_equal_and_do_not_share_state(file):
    one, two = load_config(str(file)), load_config(str(file))
    assert one.to_dict() == two.to_dict()
    one.seed = 9
    assert two.seed == 0


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_configs_hold_the_papers_numbers(name):
    """S-SPPO, section 4.1 and appendix B; lengths and optimizer are SPPO's."""
    flat = cfg.flatten(load(name))
    paper = {
        "sampling.num_samples": 5,
        "sampling.temperature": 1.0,
        "sampling.top_p": 1.0,
        "sampling.top_k": 0,
        "sampling.min_p": 0.0,
        "loss.name": "s_sppo",
        "loss.beta": 1e-3,
        "loss.repulsion_weight": 1.0,
        "loss.log_z_coef": 0.5,
        "loss.pair_reduction": "mean",
        "pairs.win_rate_estimator": "pairwise",
        "pairs.include_self": True,
        "pairs.gate_level": "pair",
        "pairs.gate.name": "linear",
        "similarity.name": "relu_cosine",
        "similarity.encoder": "embedded:minilm",
        "similarity.embed_text": "response",
        "optimizer.name": "rmsprop",
        "optimizer.learning_rate": 5e-7,
        "optimizer.schedule": "linear",
        "optimizer.warmup_ratio": 0.1,
        "optimizer.scope": "iteration",
        "optimizer.schedule_epochs": 18.0,
        "train.epochs": 1,
        "train.batch_size": 64,
        "train.iterations": 3,
        "train.prompts_per_iteration": 0,
        "train.reference": "iteration",
        "data.max_prompt_length": 512,
        "model.dtype": "bfloat16",
        "model.param_dtype": "float32",
        "model.remat": "full",
    }
    assert {key: flat[key] for key in paper} == paper
    assert flat["data.max_prompt_length"] + flat["sampling.max_new_tokens"] == 1024
    assert flat["data.source.name"] == "hf" and flat["data.source.repo_id"]


def test_the_two_paper_configs_differ_in_the_model_alone():
    llama, mistral = (cfg.flatten(load(name)) for name in PAPER)
    assert {key for key in llama if llama[key] != mistral[key]} == {"model.source"}
    assert llama["model.source"] == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert mistral["model.source"] == "mistralai/Mistral-7B-Instruct-v0.2"


@pytest.mark.parametrize("name", PAPER)
def test_a_config_that_lacks_the_papers_oracle_says_so(name):
    config, text = load(name), (cfg.CONFIGS / f"{name}.py").read_text()
    assert config.oracle.name == "pairrm" or (
        "PairRM" in text.split('"""')[1] and "not the paper's" in text
    )


@pytest.fixture
def build(tmp_path, monkeypatch):
    """The runtime of a large config, from its published config.json alone: shapes, no arrays."""

    def built(name):
        return _built(name, tmp_path, monkeypatch)

    return built


def _built(name, tmp_path, monkeypatch):
    published = MODELS[name][0]
    (tmp_path / "config.json").write_text(json.dumps(published))
    monkeypatch.setattr(runtime, "resolve", lambda source: tmp_path)
    monkeypatch.setattr(runtime, "load_tokenizer", lambda folder, vocab_size: None)
    monkeypatch.setattr(runtime, "eos_ids", lambda tokenizer, of_model: tuple(of_model))
    config = load(name)
    schema.check(config, jax.device_count())
    return runtime.build_runtime(config)


@pytest.mark.parametrize("name", MODELS)
def test_the_large_models_are_cut_over_eight_devices_and_no_array_is_made(name, build):
    made, (published, parameters) = build(name), MODELS[name]
    leaves = dict(hf.flatten(made.abstract_params))
    assert dict(made.mesh.shape) == {"replica": 1, "data": 1, "fsdp": 8, "tensor": 1}
    assert made.arch == arch_from_hf(published)
    assert sum(leaf.size for leaf in leaves.values()) == parameters
    assert {leaf.dtype.name for leaf in leaves.values()} == {"float32"}
    local = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves.values())
    assert parameters / 8 < local < parameters / 8 * 1.001  # only the norms are on every device
    assert leaves["layers/attn/q/kernel"].sharding.spec == P(None, "fsdp", "tensor", None)


@pytest.mark.parametrize("shape", [(1, 1, 64, 1), (1, 2, 16, 2), (4, 1, 4, 4)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_the_large_models_build_on_64_described_devices_with_their_optimizer(name, shape, build):
    """Everything a train step holds: parameters, optimizer state, and a batch of the config's own
    size."""
    made, mesh = build(name), AbstractMesh(shape, AXES)
    config, parameters = made.config, MODELS[name][1]
    schema.check(config, 64)
    shapes = jax.eval_shape(lambda: init_params(made.decoder, jax.random.key(0)))
    transform = cfg.bind(OPTIMIZERS, config.optimizer)()
    state = jax.eval_shape(transform.init, shapes)
    ways = shape[2] * shape[3]
    for tree, copies in ((shapes, 1), (state, 1 if config.optimizer.name == "rmsprop" else 2)):
        cut = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings(mesh, tree)), strict=True)
        local = sum(math.prod(sharding.shard_shape(leaf.shape)) for leaf, sharding in cut)
        assert copies * parameters / ways < local < copies * parameters / ways * 1.01
    assert config.train.batch_size % batch_ways(shape) == 0
    assert config.sampling.batch_size % batch_ways(shape) == 0
