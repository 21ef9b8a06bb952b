"""Makes verl.npz: values and gradients of group losses, and advantages, by verl's own functions on
random inputs.

    python -m venv venv && venv/bin/pip install torch==2.13.0 ray omegaconf tensordict hydra-core
    codetiming orjson venv/bin/pip install trl==1.16.0 && venv/bin/pip install --no-deps verl==0.9.1
    venv/bin/python tests/golden/make_verl.py

Everything is a call of verl.trainer.ppo.core_algos; nothing of the formulas is repeated here.

* Losses: the registered policy losses (`vanilla`, `gspo`, `sapo`, `geo_mean`, `cispo`) on 12
  responses with tokens: verl leaves empty responses out of its means, TRL and this project count
  them. `clip_ratio_c` is TRL's delta. CISPO is called with no lower clip, which verl has and TRL
  has not, and its cap is 1 + clip_ratio_high.
* Advantages: responses of one token, since verl whitens REINFORCE++ over tokens and this project
  over responses; GRPO is called with the offset 1e-4 (verl's own is 1e-6).
"""

import json
import pathlib
from types import SimpleNamespace

import numpy as np
import torch
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

GROUPS, K, T = 3, 4, 7
CASES = {  # case: (verl's loss, aggregation, verl's keywords, ours)
    "grpo": ("vanilla", "seq-mean-token-mean", {"clip_ratio_c": 1e6}, {"epsilon": 0.2}),
    "grpo/dual": (
        "vanilla",
        "seq-mean-token-mean",
        {"clip_ratio_high": 0.3, "clip_ratio_c": 1.5},
        {"epsilon": 0.2, "epsilon_high": 0.3, "delta": 1.5},
    ),
    "grpo/sum": (
        "vanilla",
        "seq-mean-token-sum",
        {"clip_ratio_c": 1e6},
        {"epsilon": 0.2, "loss_agg_mode": "seq-mean-token-sum"},
    ),
    "dr_grpo": (
        "vanilla",
        "seq-mean-token-sum-norm",
        {"clip_ratio_c": 1e6, "loss_scale_factor": 9},
        {"epsilon": 0.2, "max_completion_length": 9},
    ),
    "bnpo": ("vanilla", "token-mean", {"clip_ratio_c": 1e6}, {"epsilon": 0.2}),
    "dapo": (
        "vanilla",
        "token-mean",
        {"clip_ratio_high": 0.28, "clip_ratio_c": 3.0},
        {"epsilon": 0.2, "epsilon_high": 0.28, "delta": 3.0},
    ),
    "cispo": (
        "cispo",
        "token-mean",
        {"clip_ratio_low": 1.0, "clip_ratio_high": 0.5},
        {"epsilon_high": 1.5},
    ),
    "gspo": (
        "gspo",
        "seq-mean-token-mean",
        {"clip_ratio_low": 0.03, "clip_ratio_high": 0.04},
        {"epsilon": 0.03, "epsilon_high": 0.04},
    ),
    "gspo_token": (
        "gspo",
        "seq-mean-token-mean",
        {"clip_ratio_low": 0.03, "clip_ratio_high": 0.04},
        {"epsilon": 0.03, "epsilon_high": 0.04},
    ),
    "gmpo": (
        "geo_mean",
        "seq-mean-token-mean",
        {"clip_ratio_low": 0.3, "clip_ratio_high": 0.2},
        {"epsilon": 0.3, "epsilon_high": 0.2},
    ),
    "sapo": (
        "sapo",
        "seq-mean-token-mean",
        {"tau_pos": 2.0, "tau_neg": 3.0},
        {"sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0},
    ),
}


def loss_and_gradient(loss, mode, keywords, logp, old, advantage, mask):
    flat = lambda x: x.reshape(GROUPS * K, T)  # noqa: E731
    keywords = dict(keywords)
    scale = keywords.pop("loss_scale_factor", None)
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=K,
        use_dynamic_bsz=True,
        clip_ratio=0.2,
        **{"clip_ratio_low": 0.2, "clip_ratio_high": 0.2} | keywords,
    )
    if scale:
        config.global_batch_info["loss_scale_factor"] = scale
    policy = logp.clone().requires_grad_()
    spread = flat(advantage[..., None].expand(logp.shape))
    value, _ = core_algos.get_policy_loss_fn(loss)(
        flat(old), flat(policy), spread, flat(mask), mode, config
    )
    value.backward()
    return value.item(), policy.grad.numpy()


def advantages(reward):
    """Of responses of one token."""
    token, mask = reward.reshape(-1, 1), torch.ones(reward.numel(), 1)
    index = np.repeat(np.arange(len(reward)), reward.shape[1])
    shaped = lambda found: found[0].reshape(reward.shape).numpy()  # noqa: E731
    of = {
        name: core_algos.get_adv_estimator_fn(name)
        for name in ("grpo", "rloo", "reinforce_plus_plus")
    }
    yield "grpo", shaped(of["grpo"](token, mask, index, epsilon=1e-4))
    yield "dr_grpo", shaped(of["grpo"](token, mask, index, norm_adv_by_std_in_grpo=False))
    yield "rloo", shaped(of["rloo"](token, mask, index))
    yield (
        "reinforce_plus_plus",
        shaped(of["reinforce_plus_plus"](token, mask, config=SimpleNamespace(gamma=1.0))),
    )
    baseline = core_algos.get_adv_estimator_fn("reinforce_plus_plus_baseline")
    yield "reinforce_plus_plus_baseline", shaped(baseline(token, mask, index))


def main() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    n = rng.integers(1, T + 1, (GROUPS, K))
    mask = torch.tensor(np.arange(T) < n[..., None]).float()
    logp = torch.tensor(-rng.uniform(0.2, 3, (GROUPS, K, T)), dtype=torch.float32)
    old = logp - 0.3 * torch.randn(GROUPS, K, T)
    advantage = torch.tensor(rng.normal(size=(GROUPS, K)), dtype=torch.float32)
    reward = torch.tensor(rng.normal(1, 2, (5, 6)), dtype=torch.float32)
    reward[1] = torch.tensor([0.0, 1, 0, 0, 1, 0])
    arrays = {"logp": logp, "old": old, "mask": mask, "advantage": advantage, "reward": reward}
    arrays = {name: x.numpy() for name, x in arrays.items()}
    for case, (loss, mode, keywords, _) in CASES.items():
        value, gradient = loss_and_gradient(loss, mode, keywords, logp, old, advantage, mask)
        arrays[f"{case}/loss"], arrays[f"{case}/gradient"] = np.float32(value), gradient
        print(case, value)
    for name, found in advantages(reward):
        arrays[f"advantages/{name}"] = found
    arrays["cases"] = np.array(json.dumps({case: ours for case, (*_, ours) in CASES.items()}))
    np.savez_compressed(pathlib.Path(__file__).with_name("verl.npz"), **arrays)


if __name__ == "__main__":
    main()
