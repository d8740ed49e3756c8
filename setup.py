"""Package metadata of iapo_jax."""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent
# Where an installed package finds the configurations (`config.presets`).
_PRESETS = "iapo_jax.config._presets"


def _version() -> str:
  source = (_ROOT / "iapo_jax" / "__init__.py").read_text(encoding="utf-8")
  return re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE).group(1)


setuptools.setup(
    name="iapo_jax",
    version=_version(),
    description=(
        "Information-Aware Policy Optimization in JAX: reinforcement learning"
        " that credits every reasoning token with the information it carries"
        " about the final answer."
    ),
    long_description=(_ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[
        *setuptools.find_packages(include=["iapo_jax", "iapo_jax.*"]),
        _PRESETS,
    ],
    package_dir={_PRESETS: "configs"},
    package_data={
        "iapo_jax": ["py.typed"],
        "iapo_jax.tools.report": ["templates/*.j2"],
    },
    entry_points={"console_scripts": ["iapo = iapo_jax.cli.iapo:main"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "chex>=0.1.90",
        "flax>=0.12.7",
        "gguf>=0.19",  # undoes llama.cpp's quantisations
        "grain>=0.2.12",
        "huggingface_hub>=1.31",
        "jinja2>=3.1.6",  # escapes untrusted text in pages
        "jax>=0.10.1",
        "math-verify[antlr4_13_2]==0.9.*",  # grades would change with it
        "latex2sympy2_extended>=1.11",  # Math-Verify's parser
        "matplotlib>=3.9",
        "ml_collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.30",
        "pyarrow>=17.0",  # parquet
        "scipy>=1.14",  # Student's t
        "tensorboardX>=2.6.2.2",
        "tensorflow-datasets>=4.9.9",
        "tokenizers>=0.23.3",  # counts its words in no time
        "tqdm>=4.66.3",
        "safetensors>=0.8",
        "transformers>=5.24",  # knows every spelling of a config.json
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.1"],
        "cuda": ["jax[cuda13]>=0.10.1"],
        "gym": ["reasoning-gym==0.1.25"],  # others make other problems
        "parity": ["torch==2.13.0"],  # tests only: the reference models
        "test": [
            "build>=1.2",
            "hypothesis>=6.100",  # generated texts
            "ipykernel>=6.29",  # executes the notebook
            "nbclient>=0.10",
            "pytest>=8.0",
            "pytest-xdist>=3.8",
            "reasoning-gym==0.1.25",
            "ruff>=0.9",
            "wandb>=0.20",
        ],
        "wandb": ["wandb>=0.20"],
    },
)
