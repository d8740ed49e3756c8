"""Grades texts: finds their answers and compares these with gold answers."""

import atexit
import dataclasses
import functools
import os
from collections.abc import Sequence

from iapo_jax.config.formats import FormatConfig
from iapo_jax.rewards import settling, spelling, text
from iapo_jax.rewards.completions import Texts
from iapo_jax.rewards.pool import Pool, Task

_MOST_WORKERS = 8
_SOFT_SECONDS = 2.0
_HARD_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Graded:
  """The grade of one completion.

  Attributes:
    correct: whether its answer means the same as the gold answer.
    answer: as the completion spells it; None if it has none.
    timed_out: whether the comparison took too long, or ended its process
      twice; the answer then counts as wrong.
    guessed: whether the answer stands outside the place that the format asks
      for.
    score: in [0, 1], from graders that give partial scores; 1 if correct.
  """

  correct: bool
  answer: str | None
  timed_out: bool
  guessed: bool = False
  score: float | None = None


def grade(
    completions: Sequence[str],
    golds: Sequence[str],
    *,
    form: FormatConfig | None = None,
    lenient: bool = True,
) -> list[Graded]:
  r"""Grades completions; any thread may call it.

  `rewards.text.find_answer` finds the answer of a completion. Answers are
  compared by spelling and exact numbers, then by Math-Verify in processes that
  are killed if they take too long. Where an answer is a guess, Math-Verify also
  searches the text around it.

  Args:
    completions: n texts.
    golds: n gold answers, plain or LaTeX.
    form: the format that was asked for; None is `think_answer`.
    lenient: whether an answer elsewhere is guessed.

  Raises:
    ValueError: if the lengths differ.
    RuntimeError: if no grading process can be started.
  """
  form = form or FormatConfig()
  if len(completions) != len(golds):
    raise ValueError(
        f"golds: must be one per completion, got {len(golds)} for"
        f" {len(completions)}"
    )
  found = [text.find_answer(x, form, lenient=lenient) for x in completions]
  tasks = {
      (answer.text, gold, answer.prose): None
      for answer, gold in zip(found, golds, strict=True)
      if answer is not None and len(answer.text) <= spelling.LONGEST
  }
  decisions = _decide(list(tasks))
  results = []
  for answer, gold in zip(found, golds, strict=True):
    if answer is None:
      results.append(Graded(False, None, False))
      continue
    decision = decisions.get((answer.text, gold, answer.prose), False)
    results.append(
        Graded(
            bool(decision), answer.text, decision is None, not answer.asked
        )
    )
  return results


def judge(given: Texts, *, form: FormatConfig) -> list[Graded]:
  """Grades completions of a run by comparing answers."""
  return grade(given.texts, given.golds, form=form, lenient=form.lenient)


def start() -> None:
  """Starts the processes that `grade` may need, without waiting for them."""
  _pool(os.getpid()).start()


def _decide(tasks: Sequence[Task]) -> dict[Task, bool | None]:
  """Decides distinct tasks; None means that one took too long."""
  decisions: dict[Task, bool | None] = {}
  open_tasks = []
  for task in tasks:
    answer, gold, prose = task
    decision = settling.settle(answer, gold)
    # If a guessed answer is wrong, Math-Verify may find another in the prose.
    if not decision and (decision is None or prose):
      open_tasks.append(task)
    else:
      decisions[task] = decision
  if open_tasks:
    results = _pool(os.getpid()).judge(open_tasks)
    decisions |= dict(zip(open_tasks, results, strict=True))
  return decisions


@functools.cache
def _pool(_: int) -> Pool:
  """Makes the pool of a process, given its id, so that a fork makes another."""
  workers = min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
  pool = Pool(
      workers, soft_seconds=_SOFT_SECONDS, hard_seconds=_HARD_SECONDS
  )
  atexit.register(pool.close)
  return pool
