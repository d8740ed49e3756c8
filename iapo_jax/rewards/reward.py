"""Types of graders and rewards, and the reward computed from grades."""

from collections.abc import Callable, Sequence

from iapo_jax.core.types import Array, Grades, Prompts, Rollout

# (rollout, prompts) -> grades, inside the compiled step
Grader = Callable[[Rollout, Prompts], Grades]
# (rollout, grades, prompts) -> fp32[b], inside the compiled step
Reward = Callable[[Rollout, Grades, Prompts], Array]
# n completions, n gold answers -> n rewards, on the host
TextReward = Callable[[list[str], list[str]], Sequence[float]]


def combine(
    grades: Grades,
    *,
    correct: float,
    wrong: float,
    well_formed: float,
    malformed: float,
) -> tuple[Array, Array]:
  """Returns the correctness part and the format part, fp32[b] each.

  The reward is their sum.
  """
  right = grades.correct.astype("float32")
  formed = grades.well_formed.astype("float32")
  return (
      wrong + right * (correct - wrong),
      malformed + formed * (well_formed - malformed),
  )
