"""Packaging. Every direct dependency is pinned to the version the tests run on."""

from pathlib import Path

from setuptools import find_packages, setup

REQUIRES = [
    "jax==0.10.2",
    "flax==0.12.8",
    "optax==0.2.8",
    "orbax-checkpoint==0.12.8",
    "grain==0.2.18",
    "transformers==5.23.0",
    "tensorflow-datasets==4.9.10",
    "ml-collections==1.1.0",
    "numpy==2.4.6",
    "safetensors==0.8.0",
    "tokenizers==0.23.3",
    "gguf==0.19.0",
    "vaderSentiment==3.3.2",
    "matplotlib==3.11.2",
    "tqdm==4.70.1",
    "jinja2==3.1.6",  # chat templates
    "huggingface-hub==2.4.0",
    "absl-py==2.5.1",
    "array-record==0.8.6",
    "ml-dtypes==0.6.0",
    "scipy==1.17.1",  # the linear program of a game's equilibrium
    "math-verify[antlr4_13_2]==0.9.0",
    "requests==2.34.2",  # oracle `judge`
]

EXTRAS = {
    "dev": ["pytest==9.2.0", "pytest-xdist==3.8.0", "ruff==0.17.6", "pre-commit"],
    "gpu": ["jax[cuda13]==0.10.2"],
    "tpu": ["jax[tpu]==0.10.2"],
    "tasks": [
        "reasoning-gym==0.1.25"
    ],  # make installs it with all it needs but pycosat, which needs a C compiler
    "plan": ["libtpu==0.0.52"],  # the TPU compiler, for `plan` on machines without a TPU
    "tensorboard": ["tensorboard"],
    "hf": ["datasets"],
}

setup(
    name="ssppo_jax",
    version="0.1.0",
    description=(
        "Self-play preference (S-SPPO) and soft sequence policy optimisation (SSPO) of language"
        " models in JAX"
    ),
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["ssppo_jax", "ssppo_jax.*"]),
    package_data={
        "ssppo_jax": ["configs/models/*.json", "data/prompts/*.jsonl", "py.typed", "report/*.j2"]
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
