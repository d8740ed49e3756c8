"""The fields of `data.gym`, problems of reasoning-gym."""

import dataclasses
import difflib
import json
import math
from typing import Any

from iapo_jax.config import gym_families
from iapo_jax.config.fields import at_least, between, field
from iapo_jax.core.errors import fail

TAKEN = ("seed", "size")  # arguments that the run gives


@dataclasses.dataclass(frozen=True)
class GymConfig:
  """Problems of reasoning-gym, made from these fields at every start."""

  families: str = field(
      "leg_counting",
      "problem families, each perhaps with a weight, such as"
      " leg_counting:2,chain_sum; weights are exact shares of every split",
  )
  arguments: str = field(
      "",
      "arguments of families, a JSON object such as"
      ' {"leg_counting": {"max_animals": 4}}',
  )
  seed: int = field(
      0,
      "seed of all problems; splits are ranges of its indices",
      between(0, 2**32 - 1),
  )
  redundancy: float = field(
      0.8,
      "share of the warm start's solutions that contain redundant sentences",
      between(0, 1),
  )
  train_problems: int = field(
      6000,
      "number of distinct train problems; none is in another split",
      at_least(1),
  )
  validation_problems: int = field(
      256,
      "number of distinct validation problems; none is in another split",
      at_least(1),
  )
  test_problems: int = field(
      512,
      "number of distinct test problems; none is in another split",
      at_least(1),
  )


def families_of(g: GymConfig) -> dict[str, float]:
  """Returns the weight of each family, in the order of the field.

  Raises `ConfigError` for an unknown or refused family, one that is named
  twice, or a weight that is no positive number.
  """
  known, weights = gym_families.known(), {}
  for entry in g.families.split(","):
    name, colon, text = (part.strip() for part in entry.partition(":"))
    if reason := gym_families.REFUSED.get(name):
      fail("data.gym.families", g.families, f"{name} cannot be used: {reason}")
    if name not in known:
      close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
      hint = f"did you mean {' or '.join(close)}?" if close else (
          "one of reasoning-gym is, for example, leg_counting"
      )  # fmt: skip
      fail("data.gym.families", g.families, f"unknown family {name!r}; {hint}")
    if name in weights:
      fail("data.gym.families", g.families, f"names {name} twice")
    weights[name] = _weight(text) if colon else 1.0
    if weights[name] is None:
      rule = f"the weight of {name} must be a number above 0, not {text!r}"
      fail("data.gym.families", g.families, rule)
  return weights


def _weight(text: str) -> float | None:
  try:
    value = float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) and value > 0 else None


def arguments_of(g: GymConfig) -> dict[str, dict[str, Any]]:
  """Returns the arguments of each family that has some.

  Raises `ConfigError` unless they are a JSON object of objects, by families of
  the run, without the arguments that the run gives.
  """
  name, rule = "data.gym.arguments", (
      'must be a JSON object by family such as {"leg_counting": {"max_animals":'
      " 4}}"
  )  # fmt: skip
  try:
    found = json.loads(g.arguments or "{}")
  except (ValueError, RecursionError):
    fail(name, g.arguments, rule)
  if not isinstance(found, dict):
    fail(name, g.arguments, rule)
  families = families_of(g)
  for family, given in found.items():
    if family not in families:
      told = f"{family} is not in data.gym.families = {g.families}"
      fail(name, g.arguments, told)
    if not isinstance(given, dict):
      fail(name, g.arguments, rule)
    for taken in TAKEN:
      if taken in given:
        told = f"{family}.{taken} is given by the run; set data.gym instead"
        fail(name, g.arguments, told)
  return found


def several(g: GymConfig) -> list[str]:
  """Returns the families whose problems may have several right answers."""
  known = gym_families.known()
  return [name for name in families_of(g) if not known[name].one_answer]


def check(g: GymConfig) -> None:
  """Checks the families and the form of their arguments."""
  arguments_of(g)
