"""Grades answers to problems of reasoning-gym with the family's own scorer.

Scorers run in processes that are killed if they take too long or too much
memory (`rewards.pool`). Some evaluate an answer as Python: these get only
answers in the characters that `config.gym_families` allows.
"""

import atexit
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from iapo_jax.config import gym_families
from iapo_jax.config.formats import FormatConfig
from iapo_jax.rewards import text
from iapo_jax.rewards.completions import Texts
from iapo_jax.rewards.grading import Graded
from iapo_jax.rewards.pool import Pool, Task

_MOST_WORKERS = 8
_SOFT_SECONDS = 2.0
_HARD_SECONDS = 20.0
_PREPARE_SECONDS = 300.0  # to make a problem
_LONGEST = 20_000  # characters
_RIGHT = 1 - 1e-9


def row_of(
    family: str, seed: int, arguments: str, index: int, checksum: str
) -> dict[str, Any]:
  """Returns the columns of a problem that `grade` needs."""
  return {
      "family": family,
      "seed": seed,
      "arguments": arguments,
      "index": index,
      "checksum": checksum,
  }


def judge(
    given: Texts, *, form: FormatConfig, partial: bool
) -> list[Graded]:
  """Grades completions of a run, as `rewards.host` asks for it.

  Drops the scores unless `partial`; a right answer then counts as 1.
  """
  graded = grade(given.texts, given.rows, form=form, lenient=form.lenient)
  if partial:
    return graded
  return [dataclasses.replace(one, score=None) for one in graded]


def grade(
    completions: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    form: FormatConfig,
    lenient: bool = False,
) -> list[Graded]:
  """Grades completions; any thread may call it.

  An answer is right if its score is 1.

  Args:
    completions: n texts.
    rows: n problems; each has the columns of `row_of`.
    form: the format that was asked for.
    lenient: whether an answer elsewhere is guessed.

  Raises:
    RuntimeError: if no process can be started, or one cannot make a problem
      again.
  """
  found = [text.find_answer(x, form, lenient=lenient) for x in completions]
  tasks = [
      None if answer is None else _task(answer.text, row)
      for answer, row in zip(found, rows, strict=True)
  ]
  distinct = list(dict.fromkeys(task for task in tasks if task is not None))
  results = _pool(os.getpid()).judge(distinct) if distinct else []
  scores = dict(zip(distinct, results, strict=True))
  for (family, seed, _, index, *_), told in scores.items():
    if isinstance(told, str):
      raise RuntimeError(
          f"data reasoning_gym: problem {index} of {family}, seed {seed}:"
          f" {told}"
      )
  graded = []
  for answer, task in zip(found, tasks, strict=True):
    score = 0.0 if task is None else scores[task]
    right = score is not None and score >= _RIGHT
    graded.append(
        Graded(
            correct=right,
            answer=answer and answer.text,
            timed_out=score is None,
            guessed=answer is not None and not answer.asked,
            score=1.0 if right else score or 0.0,
        )
    )
  return graded


def start() -> None:
  """Starts the processes that `grade` needs, without waiting for them."""
  _pool(os.getpid()).start()


def _task(answer: str, row: Mapping[str, Any]) -> Task | None:
  """Returns a request for a score; None if no scorer may see the answer."""
  family = gym_families.known()[row["family"]]
  if len(answer) > _LONGEST or not family.may_score(answer):
    return None
  names = ("family", "seed", "arguments", "index", "checksum")
  return (*(row[name] for name in names), answer)


@functools.cache
def _pool(_: int) -> Pool:
  """Makes the pool of a process, given its id, so that a fork makes another."""
  pool = Pool(
      min(len(os.sched_getaffinity(0)), _MOST_WORKERS),
      soft_seconds=_SOFT_SECONDS,
      hard_seconds=_HARD_SECONDS,
      prepare_seconds=_PREPARE_SECONDS,
      judge="scoring",
  )
  atexit.register(pool.close)
  return pool
