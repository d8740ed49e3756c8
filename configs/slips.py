"""Sums whose results slip, so that checks that look redundant are needed.

  python experiments/run.py --config=configs/slips.py:to_go

Variants are those of `configs/arithmetic.py`. The environment replaces 15 % of
the results of steps; the warm start's chains check 65 % of those, and 35 % of
the right ones. The decoder has four layers in place of two: to see that a
result is wrong takes layers after those that compute the right one.
docs/evidence.md has what comes of it.
"""

import ml_collections

from iapo_jax.config import presets


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """A variant of `sums` of this task."""
  return presets.read("sums")["get_config"](variant, task="slips")
