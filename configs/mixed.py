"""Sums of three to seven numbers: problems that need little or much reasoning.

  python experiments/run.py --config=configs/mixed.py:to_go

The variants are those of `configs/arithmetic.py`.
"""

import ml_collections

from iapo_jax.config import presets


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """Returns a variant of `sums` for this task."""
  return presets.read("sums")["get_config"](variant, task="mixed")
