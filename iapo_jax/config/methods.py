"""Methods by name; a name sets every field that the method needs.

Fields that a method does not set keep their defaults, the paper's loss: token
mean, clip 0.2 / 0.28, KL weight 0.001.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from iapo_jax.config.credits import CREDITS
from iapo_jax.core.errors import ConfigError

_PRESETS = (
    "paper", "to_go", "chance", "faithful", "grpo", "dr_grpo", "dapo", "gspo",
    "gfpo", "gtpo", "s_grpo", "length_penalty", "group_length_penalty",
    "shuffled", "cost_only",
)  # fmt: skip
# Every credit mode is a method, under its own name.
NAMES = (*_PRESETS, *(name for name in CREDITS if name not in _PRESETS))


def choose(config: ml_collections.ConfigDict, name: str) -> None:
  """Sets the fields of a method, one of `NAMES`.

  Set `rollout.max_tokens` and `group_size` before. All fields that methods set
  must be at their defaults. Raises `ConfigError` for an unknown name.
  """
  if name not in NAMES:
    raise ConfigError(f"method {name!r}: must be one of {', '.join(NAMES)}")
  fields = _fields(config.rollout.max_tokens, config.group_size)
  for group, values in fields[name].items():
    config[group].update(values)


def _of_mode(name: str) -> dict[str, dict[str, Any]]:
  """Returns the fields of a credit mode at its defaults."""
  credit = {"mode": name}
  if CREDITS[name].penalises_rewards:
    credit["normalise"] = False
  return {"credit": credit}


def _fields(
    max_tokens: int, group_size: int
) -> dict[str, Mapping[str, Mapping[str, Any]]]:
  """Returns fields by method and group; docs/method.md has the formulas."""
  to_go = {"mode": "to_go", "info_weight": 2.0, "explore_weight": 0.0}
  # Credits how much a token raises the chance of the right answer, less a cost.
  chance = {"discount": 1.0, "cost": 0.01, "only_correct": False}
  plain = {"mode": "grpo"}
  # GRPO's loss: every completion counts equally, and the clip is symmetric.
  per_sequence = {"aggregation": "sequence_mean", "clip_high": 0.2}
  return {name: _of_mode(name) for name in CREDITS} | {
      "to_go": {"credit": to_go},
      "chance": {
          "credit": to_go | chance,
          "probe": {"estimator": "gold_chance"},
      },
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
      "shuffled": {"credit": to_go | {"information": "shuffled"}},
      "cost_only": {"credit": to_go | {"information": "none", "cost": 0.03}},
  }  # fmt: skip
