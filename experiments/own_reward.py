"""Trains with your own reward: right answers, and a bonus for short ones.

  python experiments/own_reward.py --config=configs/arithmetic.py:grpo \
      --workdir=runs/own_reward

It takes all arguments of `iapo train`. The function receives decoded
completions and the gold answer of each; an exception that it raises ends the
run.
"""

from iapo_jax.cli import iapo
from iapo_jax.rewards import grade
from iapo_jax.rl.own import Own

_LONGEST = 400  # characters


def reward(completions: list[str], golds: list[str]) -> list[float]:
  """Returns 1 for a right answer, up to 0.5 more for a short one, else 0.

  Args:
    completions: n texts, without their EOS.
    golds: n gold answers.

  Returns:
    n rewards.
  """
  judged = zip(completions, grade(completions, golds), strict=True)
  return [
      graded.correct * (1 + 0.5 * max(0.0, 1 - len(text) / _LONGEST))
      for text, graded in judged
  ]


if __name__ == "__main__":
  iapo.run("train", own=Own(text_reward=reward))
