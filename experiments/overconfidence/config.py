"""Self-play under oracles that are confident and wrong or arbitrary about near-duplicates.

`config.py:sft` trains the model that the others start from. `config.py` sweeps the methods at one
dose, `doses.py` the doses. PLAN.md says what is asked of them."""

from ssppo_jax.schema import base_config, select

HERE = "experiments/overconfidence"  # commands run in the repository's root
MODEL = "runs/overconfidence-model"
SEEDS = (1, 2, 3, 4, 5, 6, 7, 8)
METRICS = (
    "evaluate/judge/win_rate",
    "evaluate/judge/win_rate:max",
    "evaluate/win_rate",
    "evaluate/judge/reward",
    "score/entropy",
    "generate/distinct_2",
    "generate/repetition_4",
    "train/grad_variance:mean",
    "score/kl_to_initial",
)


def get_config(step="play"):
    config = base_config()
    config.data.max_prompt_length = 16
    config.data.prompt_buckets = (16,)
    config.sampling.max_new_tokens = 24
    config.sampling.batch_size = 32
    select(config, "optimizer", "adamw")
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_ratio = 0.0
    config.train.term_norms = False
    return {"sft": _sft, "fit": _fit, "play": _play}[step](config)


def _sft(config):
    config.model.source = f"{MODEL}/random"
    select(config, "data.source", "answered", path=f"{MODEL}/demonstrations.jsonl")
    select(config, "loss", "sft")
    config.data.heldout = 64
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_ratio = 0.05
    config.train.iterations = 1
    config.train.prompts_per_iteration = 0
    config.train.batch_size = 64
    config.train.epochs = 5
    return config


def _fit(config):
    """Fit a reward model on pairs that u labels (make_reward.py)."""
    config.model.source = f"{MODEL}/model"
    select(config, "data.source", "answered", path=f"{MODEL}/pairs.jsonl")
    config.data.heldout = 128
    config.optimizer.learning_rate = 3e-4
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_ratio = 0.1
    config.train.iterations = 1
    config.train.prompts_per_iteration = 0
    config.train.batch_size = 32
    config.train.epochs = 4
    return config


def _play(config):
    config.model.source = f"{MODEL}/model"
    select(config, "data.source", f"{HERE}/language.py:prompts", duplicates=0.3)
    select(config, "oracle", f"{HERE}/language.py:oracle", bias="florid")
    config.eval.oracles = f"{HERE}/language.py:judge"
    config.data.heldout = 64
    config.sampling.num_samples = 4
    config.similarity.name = "token_jaccard"
    select(config, "loss", "s_sppo", beta=0.05, repulsion_weight=1.0)
    config.optimizer.learning_rate = 1e-4
    config.train.iterations = 30
    config.train.prompts_per_iteration = 32
    config.train.batch_size = 8
    config.train.micro_batches = 2
    config.train.reference_storage = "device"
    config.eval.every = 3
    config.eval.num_samples = 2
    config.checkpoint.every = 0
    config.checkpoint.final = False
    config.checkpoint.export = False
    return config


# beta is raised by the ratio of SPPO's to S-SPPO's mean margin of targets in a first trial, 0.563 /
# 0.179, so that targets are as large as the gate leaves them on average.
SHUFFLED = f"{HERE}/language.py:shuffled"
SPPO = {"pairs.gate_level": "none", "loss.repulsion_weight": 0.0}
S_SPPO: dict = {}
METHODS = {
    "SPPO": SPPO,
    "S-SPPO": S_SPPO,
    "gate alone": {"loss.repulsion_weight": 0.0},
    "random gate": {"loss.repulsion_weight": 0.0, "pairs.gate.name": SHUFFLED},
    "SPPO, beta 0.16": SPPO | {"loss.beta": 0.16},
    "repulsion alone": {"pairs.gate_level": "none"},
}
BASELINES = {
    "repulsion alone, lambda 30": {"pairs.gate_level": "none", "loss.repulsion_weight": 30.0},
    "DPO": {"pairs.gate_level": "none", "loss.name": "dpo"},
    "IPO": {"pairs.gate_level": "none", "loss.name": "ipo"},
}


def sweep(add):
    for label, changes in METHODS.items():
        add(changes, label=label)
