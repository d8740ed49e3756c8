"""Grading texts by their answers: the one public door."""

import atexit
import dataclasses
import functools
import os
from collections.abc import Sequence

from iapo_jax.rewards import equivalence, spelling, text
from iapo_jax.rewards.pool import Pool, Task

_MOST_WORKERS = 8
_SOFT_SECONDS = 2.0
_HARD_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Graded:
  """What came of one completion.

  Attributes:
    correct: whether its answer is the gold one.
    answer: as it was found; None where there is none.
    timed_out: whether comparing took too long, or ended its process twice; it
      is then wrong.
  """

  correct: bool
  answer: str | None
  timed_out: bool


def grade(
    completions: Sequence[str],
    golds: Sequence[str],
    *,
    need_tags: bool = False,
) -> list[Graded]:
  r"""Grades completions.

  The answer is what the last complete `<answer>...</answer>` holds, or the last
  complete `\boxed{...}` within. A text without any answer tag may have it
  after its last `</think>`: in its last `\boxed{...}`, after its last "answer
  is", as a whole, or where else Math-Verify finds one. Answers are compared by
  spelling and exact numbers, then by Math-Verify in processes that are killed
  where they take too long. It may be called from any thread.

  Args:
    completions: n texts.
    golds: n gold answers, plain or LaTeX.
    need_tags: whether a text without answer tags has no answer, as in
      training.

  Returns:
    n results.

  Raises:
    ValueError: where the numbers of both differ.
    RuntimeError: where no grading process can be started.
  """
  if len(completions) != len(golds):
    raise ValueError(
        f"golds: {len(golds)} given for {len(completions)} completions"
    )
  found = [text.find_answer(x, need_tags=need_tags) for x in completions]
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
    results.append(Graded(bool(decision), answer.text, decision is None))
  return results


def start() -> None:
  """Starts the processes that `grade` may need, without waiting for them."""
  _pool().start()


def _decide(
    tasks: Sequence[Task],
) -> dict[Task, bool | None]:
  """Decisions on distinct (answer, gold, prose); None for no time left."""
  decisions: dict[Task, bool | None] = {}
  open_tasks = []
  for task in tasks:
    answer, gold, prose = task
    decision = equivalence.settle(answer, gold)
    if not decision and (decision is None or prose):
      open_tasks.append(task)
    else:
      decisions[task] = decision
  if open_tasks:
    results = _pool().compare(open_tasks)
    decisions |= dict(zip(open_tasks, results, strict=True))
  return decisions


def _pool() -> Pool:
  """This process's own: a fork shares no pipes with its parent."""
  return _pool_of(os.getpid())


@functools.cache
def _pool_of(_: int) -> Pool:
  workers = min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
  pool = Pool(
      workers, soft_seconds=_SOFT_SECONDS, hard_seconds=_HARD_SECONDS
  )
  atexit.register(pool.close)
  return pool
