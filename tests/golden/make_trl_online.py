"""Makes trl_online.npz: values and gradients of Nash-MD and XPO by TRL's own code, on random
log-probs.

    python -m venv venv && venv/bin/pip install torch==2.13.0 trl==0.19.1 transformers==4.54.1
    venv/bin/python tests/golden/make_trl_online.py

TRL 0.19 still has NashMDTrainer and XPOTrainer; 1.16, which `make_trl.py` uses, does not. Their
`_compute_losses` are called on trainers that were never initialised and hold only the attributes
those methods read. XPO's chosen mask is made as its training step does from scores, here log p and
log(1 - p), without ties. No formula is repeated.

Also TRL's GeometricMixtureWrapper on random logits: log-probs of the opponent that Nash-MD draws.

Each case stores its keywords, the loss, and its gradient with respect to the log-probs of the
policy."""

import json
import pathlib
from types import SimpleNamespace

import numpy as np
import torch
from trl.models.modeling_base import GeometricMixtureWrapper
from trl.trainer.nash_md_trainer import NashMDTrainer
from trl.trainer.xpo_trainer import XPOTrainer

ROWS, T, V = 6, 7, 11
CASES = {  # case: keywords, ours and TRL's alike
    "nash_md": {"beta": 0.3},
    "nash_md/default": {"beta": 0.1},
    "xpo": {"loss_type": "sigmoid", "beta": 0.3, "alpha": 0.2},
    "xpo/default": {"loss_type": "sigmoid", "beta": 0.1, "alpha": 1e-5},
    "xpo/ipo": {"loss_type": "ipo", "beta": 0.3, "alpha": 0.2},
}


def trainer(kind, beta, alpha=0.0, loss_type=None):
    """A trainer that holds these attributes and nothing else."""
    made = object.__new__(kind)
    made.__dict__.update(
        {"_beta": beta, "_alpha": alpha, "args": SimpleNamespace(loss_type=loss_type)}
    )
    return made


def loss_of(case, hyper, logp, ref, mask, p_win):
    masked, masked_ref = logp * mask, ref * mask  # TRL fills its padding with 0
    if case.startswith("nash_md"):
        made = trainer(NashMDTrainer, **hyper)
        return made._compute_losses(masked[:, 0], masked_ref[:, 0], p_win)[0]
    chosen = torch.log(p_win) >= torch.log(1 - p_win)
    made = trainer(XPOTrainer, **hyper)
    return made._compute_losses(
        masked[:, 0], masked[:, 1], masked_ref[:, 1], masked_ref[:, 0], chosen
    )[0]


def mixture(logits, ref_logits, coef):
    """What the wrapped models' generate() samples from."""
    model, reference = (lambda x=x: SimpleNamespace(logits=x) for x in (logits, ref_logits))
    wrapper = object.__new__(GeometricMixtureWrapper)
    wrapper.__dict__.update({"model": model, "ref_model": reference, "mixture_coef": coef})
    return wrapper.forward().logits


def main() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    n = rng.integers(1, T + 1, (ROWS, 2))
    n[0] = T, 2
    mask = torch.tensor(np.arange(T) < n[..., None]).float()
    logp = torch.log_softmax(2 * torch.randn(ROWS, 2, T, V), -1)[..., 0]
    ref = torch.log_softmax(2 * torch.randn(ROWS, 2, T, V), -1)[..., 0]
    p_win = torch.tensor(rng.uniform(0.02, 0.98, ROWS), dtype=torch.float32)
    logits, ref_logits = 3 * torch.randn(2, ROWS, T, V)
    arrays = {
        "logp": logp,
        "ref": ref,
        "mask": mask,
        "p_win": p_win,
        "logits": logits,
        "ref_logits": ref_logits,
    }
    for coef in (0.25, 0.5):
        arrays[f"mixture/{coef}"] = mixture(logits, ref_logits, coef)
    for case, hyper in CASES.items():
        policy = logp.clone().requires_grad_()
        loss = loss_of(case, hyper, policy, ref, mask, p_win)
        loss.backward()
        arrays |= {f"{case}/loss": loss.detach(), f"{case}/gradient": policy.grad}
        print(case, loss.item())
    arrays = {name: x.numpy().astype(np.float32) for name, x in arrays.items()}
    path = pathlib.Path(__file__).with_name("trl_online.npz")
    np.savez_compressed(path, cases=np.array(json.dumps(CASES)), **arrays)


if __name__ == "__main__":
    main()
