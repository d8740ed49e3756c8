"""Trains with your own rewards: right answers, and short ones for the problem.

  python experiments/own_reward.py --config=configs/arithmetic.py:grpo \
      --workdir=runs/own_reward

It takes all arguments of `iapo train`. A function names what it gets: `texts`,
`golds`, `prompts`, `rows`, or a column of the data such as `question`. An
exception that it raises ends the run.
"""

from iapo_jax.cli import iapo
from iapo_jax.rewards import grade
from iapo_jax.rl.own import Own

_LONGEST = 20  # characters of a text for each one of its question


def right(*, texts: list[str], golds: list[str]) -> list[float]:
  """Returns 1 for a right answer, else 0."""
  return [float(x.correct) for x in grade(texts, golds)]


def short(
    *, texts: list[str], golds: list[str], question: list[str]
) -> list[float]:
  """Returns up to 1 for a right answer in a text that is short for it."""
  judged = zip(texts, question, right(texts=texts, golds=golds), strict=True)
  return [
      is_right * max(0.0, 1 - len(text) / (_LONGEST * len(asked)))
      for text, asked, is_right in judged
  ]


if __name__ == "__main__":
  iapo.run("train", own=Own(text_reward=[right, (short, 0.5)]))
