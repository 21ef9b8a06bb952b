"""Makes trl.npz: values and gradients of losses by TRL's own code, on random log-probs.

    python -m venv venv && venv/bin/pip install torch==2.13.0 trl==1.16.0
    venv/bin/python tests/golden/make_trl.py

TRL's loss methods are called on trainers that were never initialised and hold only the attributes
those methods read; the model is replaced by something that returns the stored log-probs. Nothing of
the formulas is repeated here.

* Pairs: DPOTrainer._compute_loss; KTOTrainer._compute_loss; CPOTrainer.get_batch_loss_metrics
  (SimPO); ORPOTrainer.get_batch_loss_metrics. KTO takes single responses and one KL per batch, so
  it is called twice for each pair (winner with the loser as the mismatched response, then the
  reverse). ORPO averages its NLL over the tokens of a batch, prompt included: it is called pair by
  pair, after a prompt of one token, which no position predicts.
* Groups: GRPOTrainer._compute_loss and GMPOTrainer._compute_loss on the 12 responses of 3 groups of
  4; one of them has no tokens, and advantage 0 (TRL's GMPO would add its advantage to the value,
  with no gradient).

Each case stores its keywords, the loss, and its gradient with respect to the log-probs of the
policy. (SimPO and ORPO read logits; the gradient of a token's log-prob is that of its logit over 1
- p.)

* Importance weights: the lines that compute them are cut out of the same method, and the loss gets
  them. The sampler's log-probs are the old ones with noise.
* Advantages: TRL computes them in the middle of a method that also generates. The lines that do are
  cut out of its source and run as they stand, on rewards of 5 groups of 6. DAPO's length reward is
  called.

Not in TRL 1.16: SPPO with soft win rates, cDPO, S-SPPO, SSPO, INPO, GSPO-token (verl has it:
make_verl.py)."""

import inspect
import json
import math
import pathlib
import textwrap
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import torch
from trl.experimental.cpo import CPOTrainer
from trl.experimental.gmpo import GMPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.rewards import get_soft_overlong_punishment
from trl.trainer import grpo_trainer, rloo_trainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

PAIRS, GROUPS, K, T, V = 6, 3, 4, 7, 11
DPO = {  # ours: (TRL's loss_type, keywords)
    "dpo": ("sigmoid", {"beta": 0.3}),
    "ipo": ("ipo", {"beta": 0.3}),
    "hinge": ("hinge", {"beta": 0.3}),
    "robust": ("robust", {"beta": 0.3, "label_smoothing": 0.2}),
    "exo_pair": ("exo_pair", {"beta": 0.3, "label_smoothing": 0.05}),
    "nca_pair": ("nca_pair", {"beta": 0.3}),
    "bco_pair": ("bco_pair", {"beta": 0.3}),
    "sppo_hard": ("sppo_hard", {"beta": 0.3}),
    "apo_zero": ("apo_zero", {"beta": 0.3}),
    "apo_down": ("apo_down", {"beta": 0.3}),
}
MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
CLIP_MAX = 1.2
IMPORTANCE = ("grpo/all", "dapo", "cispo", "gspo")  # cases of GROUP that are also weighed
GROUP = {  # case: (TRL's loss_type, keywords)
    "grpo": ("grpo", {"epsilon": 0.2}),
    "grpo/all": ("grpo", {"epsilon": 0.2, "epsilon_high": 0.3, "delta": 1.5, "beta": 0.1}),
    "dr_grpo": (
        "dr_grpo",
        {"epsilon": 0.2, "epsilon_high": 0.3, "beta": 0.1, "max_completion_length": 9},
    ),
    "bnpo": ("bnpo", {"epsilon": 0.2, "beta": 0.1}),
    "dapo": ("dapo", {"epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.1}),
    "cispo": ("cispo", {"epsilon_high": 1.5, "beta": 0.1}),
    "cispo/default": ("cispo", {"epsilon_high": 5.0}),
    "sapo": ("sapo", {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05, "beta": 0.1}),
    "sapo/hot": ("sapo", {"sapo_temperature_pos": 10.0, "sapo_temperature_neg": 12.0}),
    "gspo": ("grpo", {"epsilon": 0.03, "epsilon_high": 0.04, "beta": 0.1}),
    "gspo/default": ("grpo", {"epsilon": 3e-4, "epsilon_high": 4e-4}),
    "gmpo": ("gmpo", {"epsilon": 0.3, "epsilon_high": 0.2, "beta": 0.1}),
    "gmpo/default": ("gmpo", {"epsilon": 0.4}),
}


class Alone:
    """An accelerator of one process."""

    num_processes, device = 1, torch.device("cpu")

    def gather(self, x):
        return x

    gather_for_metrics = gather

    def reduce(self, x, reduction):
        return x


def trainer(kind, **attributes):
    """A trainer that holds these attributes and nothing else."""
    made = object.__new__(kind)
    common = {
        "accelerator": Alone(),
        "model": SimpleNamespace(training=False, is_gradient_checkpointing=False),
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "aux_loss_enabled": False,
        "label_smoothing": 0.0,
    }
    made.__dict__.update(common | attributes)
    return made


def lengths(rng, *shape):
    n = rng.integers(1, T + 1, shape)
    n.flat[0] = T
    return n


def log_probs(logits, tokens):
    """Log-probs of the tokens, differentiable in the logits."""
    return torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]


class Outputs(SimpleNamespace):
    """What TRL's patched models return; only log_probs enters the loss."""


def fused(logp, mask):
    """A model whose log-probs are known: 0 where the label is ignored, as TRL's fused head
    gives."""
    zero = torch.zeros_like(logp)
    return lambda **_: Outputs(
        log_probs=logp * mask,
        entropy=zero,
        mean_logits=zero,
        is_top1=zero.bool(),
        log_sum_sq_probs=zero,
    )


def with_prompt(mask):
    """One prompt column before the completion."""
    return torch.cat([torch.zeros(len(mask), 1), mask], 1)


def dpo_family(logp, ref, mask):
    """Batches are [winners, losers]."""

    def flat(x):
        return torch.cat([x[:, 0], x[:, 1]])

    ids = torch.ones(2 * PAIRS, T + 1, dtype=torch.long)
    inputs = {"completion_mask": with_prompt(flat(mask)), "input_ids": ids, "attention_mask": ids}
    for name, (loss_type, hyper) in DPO.items():
        policy = logp.clone().requires_grad_()
        made = trainer(
            DPOTrainer,
            loss_types=[loss_type],
            loss_weights=[1.0],
            ld_alpha=None,
            precompute_ref_logps=False,
            args=SimpleNamespace(gradient_checkpointing_kwargs=None),
            f_divergence_type="reverse_kl",
            use_weighting=False,
            ref_model=fused(flat(ref), flat(mask)),
            _total_train_tokens=0,
            **hyper,
        )
        loss = made._compute_loss(fused(flat(policy), flat(mask)), inputs, False)
        loss.backward()
        yield name, hyper, loss, policy.grad


def kto(logp, ref, mask):
    """Two calls for each pair: one response each, the other as its mismatch."""
    policy = logp.clone().requires_grad_()
    ids, total = torch.ones(1, T + 1, dtype=torch.long), 0.0

    def model(x, own):
        """The fused model is asked first for the mismatched response or for the response itself: by
        the mask."""
        marks = {0: 1 - own, 1: own}

        def call(input_ids, **_):
            k = marks[int(input_ids[0, 0])]
            return fused(x[b, k][None], mask[b, k][None])()

        return call

    for b in range(PAIRS):
        for own in (0, 1):
            made = trainer(
                KTOTrainer,
                calculate_KL=True,
                precompute_ref_logps=False,
                args=SimpleNamespace(gradient_checkpointing_kwargs=None),
                loss_type="kto",
                beta=0.3,
                desirable_weight=1.0,
                undesirable_weight=1.0,
                ref_model=model(ref, own),
                _total_train_tokens=0,
            )
            inputs = {
                "label": torch.tensor([own == 0]),
                "input_ids": ids,
                "attention_mask": ids,
                "completion_mask": with_prompt(mask[b, own][None]),
                "KL_input_ids": 0 * ids,
                "KL_attention_mask": ids,
                "KL_completion_mask": with_prompt(mask[b, 1 - own][None]),
            }
            total = total + made._compute_loss(model(policy, own), inputs, False) / (2 * PAIRS)
    total.backward()
    return "kto_pair", {"beta": 0.3}, total, policy.grad


def without_reference(kind, name, hyper, logits, tokens, mask, **attributes):
    """CPOTrainer and ORPOTrainer, pair by pair."""
    losses, policy = [], logits.clone().requires_grad_()
    for b in range(PAIRS):
        batch = {}
        for k, role in enumerate(("chosen", "rejected")):
            ids = torch.cat([torch.zeros(1, 1, dtype=torch.long), tokens[b, k][None]], 1)
            keep = torch.cat([torch.ones(1, 1), mask[b, k][None]], 1)
            batch[f"{role}_input_ids"], batch[f"{role}_attention_mask"] = ids, keep.long()
            batch[f"{role}_labels"] = torch.where(with_prompt(mask[b, k][None]) > 0, ids, -100)
        made = trainer(
            kind, is_encoder_decoder=False, pad_token_id=0, padding_value=0, **(hyper | attributes)
        )
        padded = torch.cat([policy[b], torch.zeros(2, 1, V)], 1)
        losses.append(
            made.get_batch_loss_metrics(
                lambda *_, logits=padded, **__: Outputs(logits=logits), batch
            )[0]
        )
    loss = torch.stack(losses).mean()
    loss.backward()
    of_token = policy.grad.gather(-1, tokens[..., None])[..., 0]
    return name, hyper, loss, of_token / -torch.expm1(log_probs(logits, tokens))


def group_family(logp, old, ref, mask, advantage, cases, importance=None):

    def flat(x):
        return x.reshape(GROUPS * K, *x.shape[2:])

    ids = torch.zeros(GROUPS * K, T, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": flat(mask),
        "advantages": flat(advantage),
        "old_per_token_logps": flat(old),
        "ref_per_token_logps": flat(ref),
        "num_items_in_batch": mask.sum(),
    }
    if importance is not None:
        inputs["importance_sampling_ratio"] = importance
    for case, (loss_type, hyper) in cases.items():
        policy = logp.clone().requires_grad_()
        epsilon = hyper.get("epsilon", 0.2)
        made = trainer(
            GMPOTrainer if loss_type == "gmpo" else GRPOTrainer,
            loss_type=loss_type,
            importance_sampling_level="sequence" if case.startswith("gspo") else "token",
            epsilon_low=epsilon,
            epsilon_high=hyper.get("epsilon_high", epsilon),
            beta=hyper.get("beta", 0.0),
            max_completion_length=hyper.get("max_completion_length", T),
            args=SimpleNamespace(
                delta=hyper.get("delta"),
                use_bias_correction_kl=False,
                **{
                    f"sapo_temperature_{s}": hyper.get(f"sapo_temperature_{s}")
                    for s in ("pos", "neg")
                },
            ),
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            use_vllm=importance is not None,
            vllm_importance_sampling_correction=True,
            _entropy_bonus_enabled=False,
        )
        made._get_per_token_logps_and_entropies = lambda *_, p=policy, **__: (
            flat(p),
            torch.zeros(GROUPS * K, T),
            None,
        )
        loss = made._compute_loss(None, inputs)
        loss.backward()
        yield case, hyper, loss, policy.grad


def between(module, kind, first, last):
    """The lines of TRL's method that turn rewards into advantages, from one that begins so to the
    next that does so."""
    lines = inspect.getsource(getattr(module, kind)._generate_and_score_completions).splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    stop = next(i for i, line in enumerate(lines) if i > start and line.strip().startswith(last))
    return textwrap.dedent("\n".join(lines[start : stop + 1]))


def importance(old, sampling, mask):
    """TRL's weights of each token, or of each response, in every mode."""
    first = "if self.use_vllm and self.vllm_importance_sampling_correction:"
    lines = between(grpo_trainer, "GRPOTrainer", first, "# Compute the per-token log probabilities")
    for mode in MODES:
        settings = {"use_vllm": True} | {
            f"vllm_importance_sampling_{name}": value
            for name, value in {"correction": True, "mode": mode, "clip_max": CLIP_MAX}.items()
        }
        names = {
            "torch": torch,
            "math": math,
            "self": SimpleNamespace(**settings, vllm_importance_sampling_clip_min=None),
            "completion_mask": mask.reshape(GROUPS * K, T),
            "tool_mask": None,
            "old_per_token_logps": old.reshape(GROUPS * K, T),
            "sampling_per_token_logps": sampling.reshape(GROUPS * K, T),
        }
        exec(lines, names)
        yield mode, names["vllm_importance_sampling_ratio"]


def advantages(reward):
    per_func, last = reward.reshape(-1, 1), "advantages = torch.nan_to_num"
    given = {
        "torch": torch,
        "nanstd": grpo_trainer.nanstd,
        "device": "cpu",
        "num_generations": reward.shape[1],
        "unscorable_mask": torch.isnan(per_func).all(dim=1),
    }
    settings = {
        "reward_weights": torch.ones(1),
        "multi_objective_aggregation": "sum_then_normalize",
        "beta": 0.0,
    }
    settings |= {"reward_clip_range": None, "normalize_advantages": False}
    grpo = between(grpo_trainer, "GRPOTrainer", "if self.multi_objective_aggregation ==", last)
    rloo = between(rloo_trainer, "RLOOTrainer", "rewards = (rewards_per_func *", last)
    cases = {
        f"grpo/{scale}": (grpo, {"scale_rewards": scale}) for scale in ("group", "batch", "none")
    }
    for case, (lines, more) in (cases | {"rloo": (rloo, {})}).items():
        names = given | {
            "self": SimpleNamespace(**settings, **more),
            "rewards_per_func": per_func.clone(),
        }
        exec(lines, names)
        yield case, names["advantages"].reshape(reward.shape).numpy()


def main() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    arrays, cases = {}, []

    def keep(name, hyper, loss, gradient):
        cases.append({"case": name, "hyper": hyper})
        arrays[f"{name}/loss"] = np.float32(loss.item())
        arrays[f"{name}/gradient"] = gradient.numpy()

    pair_mask = torch.tensor(np.arange(T) < lengths(rng, PAIRS, 2)[..., None]).float()
    logits, tokens = torch.randn(PAIRS, 2, T, V), torch.randint(1, V, (PAIRS, 2, T))
    logp = log_probs(logits, tokens)
    ref = log_probs(logits + 0.5 * torch.randn_like(logits), tokens)
    for case in dpo_family(logp, ref, pair_mask):
        keep(*case)
    keep(*kto(logp, ref, pair_mask))
    simpo = {"beta": 2.0, "simpo_gamma": 0.7}
    hidden = {"loss_type": "simpo", "cpo_alpha": 0.0, "alpha": 0.0}
    keep(*without_reference(CPOTrainer, "simpo", simpo, logits, tokens, pair_mask, **hidden))
    keep(*without_reference(ORPOTrainer, "orpo", {"beta": 0.3}, logits, tokens, pair_mask))
    arrays |= {"pair/logp": logp.numpy(), "pair/ref": ref.numpy(), "pair/mask": pair_mask.numpy()}

    n = lengths(rng, GROUPS, K)
    n[1, 2] = 0
    mask = torch.tensor(np.arange(T) < n[..., None]).float()
    advantage = torch.tensor(rng.normal(size=(GROUPS, K)), dtype=torch.float32)
    advantage[1, 2] = 0
    logits, tokens = torch.randn(GROUPS, K, T, V), torch.randint(1, V, (GROUPS, K, T))
    logp, old, ref = (
        log_probs(logits + scale * torch.randn_like(logits), tokens) for scale in (0.0, 0.3, 0.5)
    )
    for case in group_family(logp, old, ref, mask, advantage, GROUP):
        keep(*case)
    arrays |= {"group/logp": logp.numpy(), "group/old": old.numpy(), "group/ref": ref.numpy()}
    sampling = old + 0.2 * torch.randn_like(old)
    arrays["group/sampling"] = sampling.numpy()
    for mode, ratio in importance(old, sampling, mask):
        arrays[f"importance/{mode}/weight"] = ratio.reshape(GROUPS, K, -1).numpy()
        weighed = {case: GROUP[case] for case in IMPORTANCE}
        given = (logp, old, ref, mask, advantage, weighed, ratio)
        for case, _, loss, gradient in group_family(*given):
            arrays[f"importance/{mode}/{case}/loss"] = np.float32(loss.item())
            arrays[f"importance/{mode}/{case}/gradient"] = gradient.numpy()
    arrays |= {
        "group/mask": mask.numpy(),
        "group/advantage": advantage.numpy(),
        "cases": np.array(json.dumps(cases)),
    }

    reward = torch.tensor(rng.normal(1, 2, (5, 6)), dtype=torch.float32)
    reward[1], reward[2] = torch.tensor([0.0, 1, 0, 0, 1, 0]), 0.5
    arrays["reward"] = reward.numpy()
    for case, found in advantages(reward):
        arrays[f"advantages/{case}"] = found
    length = range(1, 16)
    punished = get_soft_overlong_punishment(10, 4)([[0] * n for n in length])
    arrays["soft_overlong"] = np.array(punished, np.float32)
    np.savez_compressed(pathlib.Path(__file__).with_name("trl.npz"), **arrays)
    for case in cases:
        print(case["case"], arrays[case["case"] + "/loss"])


if __name__ == "__main__":
    main()
