"""Information-Aware Policy Optimization (arXiv 2602.19049) in JAX.

    import iapo_jax

    run = iapo_jax.train("arithmetic:to_go", workdir="runs/first")
    policy = iapo_jax.load("runs/first")

docs/api.md has the rest.
"""

import importlib
import os
import typing

# Transformers is here for tokenizers and configurations. Without torch it warns
# at every start that its models need that, which no user of ours needs to read.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"
__all__ = ["Finished", "Own", "Policy", "load", "train"]

if typing.TYPE_CHECKING:
  from iapo_jax.rl.own import Own
  from iapo_jax.tools.finished import Finished, train
  from iapo_jax.tools.loaded import Policy, load


def __getattr__(name: str) -> typing.Any:
  """Imports a part of the API when it is first used."""
  places = {
      "Own": "rl.own",
      "Finished": "tools.finished",
      "train": "tools.finished",
      "Policy": "tools.loaded",
      "load": "tools.loaded",
  }
  if name not in places:
    raise AttributeError(f"module 'iapo_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(f"iapo_jax.{places[name]}"), name)
