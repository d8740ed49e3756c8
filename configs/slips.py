"""Sums whose results slip, so that checks that look redundant are needed.

  python experiments/run.py --config=configs/slips.py:to_go

The variants are those of `configs/arithmetic.py`. The environment replaces 15 %
of the results of steps. The solutions of the warm start check 65 % of the
replaced results and 35 % of the right ones. The decoder has four layers instead
of two, since recognising a wrong result takes further layers after those that
compute the right one. docs/evidence.md has the results.
"""

import ml_collections

from iapo_jax.config import presets


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """Returns a variant of `sums` for this task."""
  return presets.read("sums")["get_config"](variant, task="slips")
