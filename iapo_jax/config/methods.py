"""Methods by name: one word chooses all that makes one.

Each is fields of a configuration. Where a method says nothing, the defaults
hold: the paper's loss (token mean, clip 0.2 / 0.28, KL weight 0.001).
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from iapo_jax.core.errors import ConfigError

NAMES = (
    "paper", "to_go", "chance", "faithful", "grpo", "dr_grpo", "dapo", "gspo",
    "gfpo", "gtpo", "s_grpo", "length_penalty", "group_length_penalty",
    "shuffled", "cost_only",
)  # fmt: skip


def choose(config: ml_collections.ConfigDict, name: str) -> None:
  """Sets what makes a method. Lengths and group sizes must be set before.

  Args:
    config: to be changed, its method's fields still at their defaults.
    name: one of `NAMES`.

  Raises:
    ConfigError: for an unknown name.
  """
  if name not in NAMES:
    raise ConfigError(f"method {name!r}: must be one of {', '.join(NAMES)}")
  fields = _fields(config.rollout.max_tokens, config.group_size)
  for group, values in fields[name].items():
    config[group].update(values)


def _fields(
    max_tokens: int, group_size: int
) -> dict[str, Mapping[str, Mapping[str, Any]]]:
  """What each method sets, by group of fields; docs/method.md has formulas."""
  to_go = {"mode": "to_go", "info_weight": 2.0, "explore_weight": 0.0}
  # What each token adds to the chance of the right answer, less its price.
  chance = {"discount": 1.0, "cost": 0.01, "only_correct": False}
  plain = {"mode": "grpo"}
  # GRPO's own loss: every completion counts as much, one symmetric clip.
  per_sequence = {"aggregation": "sequence_mean", "clip_high": 0.2}
  return {
      "paper": {"credit": {"mode": "paper"}},
      "to_go": {"credit": to_go},
      "chance": {
          "credit": to_go | chance,
          "probe": {"estimator": "gold_chance"},
      },
      "faithful": {"credit": {"mode": "faithful"}},
      "grpo": {"credit": plain, "loss": per_sequence},
      "dr_grpo": {
          "credit": plain | {"normalise": False},
          "loss": {"aggregation": "constant_length", "clip_high": 0.2},
      },
      "dapo": {
          "credit": plain,
          "loss": {"kl_weight": 0.0},
          "select": {"with_spread": True},
          "reward": {"overlong_tokens": max_tokens // 5},
      },
      "gspo": {
          "credit": plain,
          "loss": {
              "ratio": "sequence",
              "aggregation": "sequence_mean",
              "clip_low": 3e-4,
              "clip_high": 4e-4,
          },
      },
      "gfpo": {
          "credit": plain,
          "select": {"shortest": max(2, group_size * 3 // 4)},
      },
      "gtpo": {"credit": {"mode": "gtpo", "explore_weight": 0.1}},
      "s_grpo": {
          "credit": plain,
          "loss": per_sequence,
          "select": {
              "first_tokens": 150, "short_tokens": 341, "later_share": 0.5,
          },
      },
      "length_penalty": {
          "credit": {"mode": "length_penalty", "normalise": False},
      },
      "group_length_penalty": {"credit": {"mode": "group_length_penalty"}},
      "shuffled": {"credit": to_go | {"information": "shuffled"}},
      "cost_only": {"credit": to_go | {"information": "none", "cost": 0.03}},
  }  # fmt: skip
