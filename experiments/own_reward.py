"""Trains with your own rewards: right answers, and short ones for the problem.

  python experiments/own_reward.py --config=configs/arithmetic.py:grpo \
      --workdir=runs/own_reward

It takes all arguments of `iapo train`. A function names what it gets: `texts`,
`golds`, `prompts`, `rows`, `scores` (of the run's grader), or a column of the
data such as `question`. An exception that it raises ends the run.
"""

from iapo_jax.cli import iapo
from iapo_jax.rl.own import Own

_LONGEST = 20  # characters of a text for each one of its question


def right(*, scores: list[float]) -> list[float]:
  """Returns 1 for a right answer, else 0."""
  return scores


def short(
    *, texts: list[str], scores: list[float], question: list[str]
) -> list[float]:
  """Returns up to 1 for a right answer in a text that is short for it."""
  judged = zip(texts, question, scores, strict=True)
  return [
      score * max(0.0, 1 - len(text) / (_LONGEST * len(asked)))
      for text, asked, score in judged
  ]


if __name__ == "__main__":
  iapo.run("train", own=Own(text_reward=[right, (short, 0.5)]))
