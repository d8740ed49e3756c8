"""What graders give, and the reward that is made of it.

A grader maps (rollout, prompts) to `Grades` inside the compiled step.
"""

from collections.abc import Callable, Sequence

from iapo_jax.core.types import Array, Grades, Prompts, Rollout

Grader = Callable[[Rollout, Prompts], Grades]
# fp32[b] of a rollout, inside the compiled step
Reward = Callable[[Rollout, Grades, Prompts], Array]
# texts of completions, gold answers -> as many numbers, on the host
TextReward = Callable[[list[str], list[str]], Sequence[float]]


def combine(
    grades: Grades,
    *,
    correct: float,
    wrong: float,
    well_formed: float,
    malformed: float,
) -> tuple[Array, Array]:
  """The two parts of the reward, fp32[b] each.

  Args:
    grades: of b completions.
    correct: part of a right answer.
    wrong: part of any other.
    well_formed: part of the asked-for format.
    malformed: part of any other.

  Returns:
    The correctness part and the format part; the reward is their sum.
  """
  right = grades.correct.astype("float32")
  formed = grades.well_formed.astype("float32")
  return (
      wrong + right * (correct - wrong),
      malformed + formed * (well_formed - malformed),
  )
