"""Make length_control.npz: length-controlled win rates by AlpacaEval's own fit and by scikit-learn.

    pip install alpaca-eval==0.6.6 scikit-learn
    python tests/golden/make_length_control.py

Planted judgements of 400 prompts: P(win) depends on the prompt and on how much longer a response
is. `fit_LogisticRegressionCV` of alpaca_eval chooses an L1 penalty; scikit-learn without a penalty
is the maximum likelihood. Both get the columns of `length_controlled_minimal`."""

from pathlib import Path

import numpy as np
import pandas as pd
from alpaca_eval.metrics.glm_winrate import fit_LogisticRegressionCV
from sklearn.linear_model import LogisticRegression


def planted(rng):
    """Return P(win) and the difference in characters of 400 prompts."""
    longer = np.round(rng.normal(250, 400, 400))
    logit = -0.4 + 1.2 * np.tanh(longer / 300) + rng.normal(0, 1.5, 400)
    return 1 / (1 + np.exp(-logit)), longer


def official(p, longer):
    """Return the rate at equal length by AlpacaEval's cross-validated fit."""
    columns = {"length": np.tanh(longer / longer.std(ddof=1)), "here": np.ones_like(p)}
    data = pd.DataFrame(columns | {"preference": p})
    model = fit_LogisticRegressionCV(data, "preference", is_ytrue_proba=True, n_splits=5)
    return model.predict_proba(pd.DataFrame({"length": [0.0], "here": [1.0]}))[0, 1]


def likeliest(p, longer):
    """Return the same without a penalty: each pair once as won and once as lost, weighted."""
    x = np.tanh(longer / longer.std(ddof=1))[:, None]
    y = np.repeat([1, 0], len(p))
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10000)
    model.fit(np.concatenate([x, x]), y, sample_weight=np.concatenate([p, 1 - p]))
    return model.predict_proba(np.zeros((1, 1)))[0, 1]


if __name__ == "__main__":
    soft, longer = planted(np.random.default_rng(0))
    hard = np.round(soft)
    rates = [[fit(p, longer) for fit in (official, likeliest)] for p in (soft, hard)]
    found = {"p": np.stack([soft, hard]), "longer": longer, "rates": np.array(rates)}
    np.savez_compressed(Path(__file__).with_name("length_control.npz"), **found)
    print(found["rates"], found["p"].mean(1))
