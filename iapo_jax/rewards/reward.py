"""Types of graders and rewards, and the reward computed from grades."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from iapo_jax.core.types import Array, Grades, Prompts, Rollout

# (rollout, prompts) -> grades, inside the compiled step
Grader = Callable[[Rollout, Prompts], Grades]
# (rollout, grades, prompts) -> fp32[b], inside the compiled step
Reward = Callable[[Rollout, Grades, Prompts], Array]
# On the host; `user_functions` says what they get by keyword.
TextReward = Callable[..., Sequence[float]]
TextGrader = Callable[..., Sequence[bool | float | None]]


class Weighted(NamedTuple):
  """A reward of texts and its weight in the sum."""

  function: TextReward
  weight: float = 1.0


def name_of(function: Callable[..., Any]) -> str:
  """Returns the name of a user's function for logs and errors."""
  inner = getattr(function, "func", function)  # of functools.partial
  return getattr(inner, "__name__", type(inner).__name__)


def combine(
    grades: Grades,
    *,
    correct: float,
    wrong: float,
    well_formed: float,
    malformed: float,
) -> tuple[Array, Array]:
  """Returns the correctness part and the format part, fp32[b] each.

  The reward is their sum. A partial score lies between `wrong` and `correct`.
  """
  right = grades.scores
  if right is None:
    right = grades.correct.astype("float32")
  formed = grades.well_formed.astype("float32")
  return (
      wrong + right * (correct - wrong),
      malformed + formed * (well_formed - malformed),
  )
