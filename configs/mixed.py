"""Sums of three to seven numbers: problems that need little or much reasoning.

  python experiments/run.py --config=configs/mixed.py:to_go

Variants are those of `configs/arithmetic.py`.
"""

import ml_collections

from iapo_jax.config import presets


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """A variant of `sums` of this task."""
  return presets.read("sums")["get_config"](variant, task="mixed")
