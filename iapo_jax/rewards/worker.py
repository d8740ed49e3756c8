"""Judges answers in a process that may be killed.

Reads a request per line, a JSON list, and writes a JSON value per line: first
`"ready"`, then for each request `"begun"`, when all is made that the answer is
judged by, and a list of the judgement; null in it means that it took too long.
"""

import faulthandler
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

_MOST_MEMORY = 4 * 2**30  # bytes, address space


class _LateError(BaseException):
  """Raised when time is up; an `except Exception` of a library misses it."""


# A request -> what judges it; only the latter has the limits of an answer
Judge = Callable[..., Callable[[], Any]]


def _comparing() -> Judge:
  """Returns the judge of answers that are compared with gold answers."""
  from iapo_jax.rewards import equivalence

  equivalence.equivalent(r"\sqrt{4}+x", "2+x", "")  # imports the libraries

  def judge(answer: str, gold: str, prose: str) -> Callable[[], bool]:
    def compare() -> bool:
      try:
        return equivalence.equivalent(answer=answer, gold=gold, prose=prose)
      except Exception:  # libraries raise any type on other text
        return False

    return compare

  return judge


def _scoring() -> Judge:
  """Returns the judge of answers to problems of reasoning-gym."""
  from iapo_jax.rewards import gym_entries

  gym_entries.library()
  return gym_entries.scoring


_JUDGES = {"comparing": _comparing, "scoring": _scoring}


def _judged(
    judge: Judge,
    request: list[Any],
    seconds: float,
    begin: Callable[[], None],
) -> Any:
  """Returns the judgement of a request; None if it takes too long.

  Calls `begin` when the time of the answer begins.
  """
  late = False

  def expire(*_: object) -> NoReturn:
    nonlocal late
    late = True
    raise _LateError

  signal.signal(signal.SIGPROF, expire)
  try:
    decide = judge(*request)
    begin()
    # CPU time, so that no answer counts as wrong because the machine is busy.
    # Repeated every 0.1 s, in case a library swallows the exception.
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.1)
    try:
      found = decide()
    finally:
      signal.setitimer(signal.ITIMER_PROF, 0)
  except (_LateError, MemoryError):
    signal.setitimer(signal.ITIMER_PROF, 0)  # if `finally` was interrupted
    return None
  return None if late else found


def main() -> None:
  """Serves requests until standard input ends."""
  soft, prepare, hard = map(float, sys.argv[1:4])
  replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)  # keeps what libraries print out of the replies
  _, most = resource.getrlimit(resource.RLIMIT_AS)
  if most == resource.RLIM_INFINITY or most > _MOST_MEMORY:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
  # Imports libraries before the first request, whose time is limited.
  judge = _JUDGES[sys.argv[4]]()

  def reply(value: Any) -> None:
    print(json.dumps(value), file=replies, flush=True)

  def begin() -> None:
    faulthandler.dump_traceback_later(hard, exit=True)  # replaces the other
    reply("begun")

  reply("ready")
  for line in sys.stdin:
    # A C thread ends this process even if Python is stuck.
    faulthandler.dump_traceback_later(prepare + hard, exit=True)
    judgement = _judged(judge, json.loads(line), soft, begin)
    faulthandler.cancel_dump_traceback_later()
    reply([judgement])


if __name__ == "__main__":
  main()
