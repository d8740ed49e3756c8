"""Compares answers in a process that may be killed.

Reads one JSON request per line and writes one word per line: first `ready`,
then `yes`, `no` or `late` for each request.
"""

import faulthandler
import json
import os
import resource
import signal
import sys
from typing import NoReturn

from iapo_jax.rewards import equivalence

_MOST_MEMORY = 4 * 2**30  # bytes, address space


class _LateError(BaseException):
  """Raised when time is up; an `except Exception` of a library misses it."""


def _expire(*_: object) -> NoReturn:
  raise _LateError


def _answer(request: dict, seconds: float) -> str:
  try:
    # CPU time, so that no answer counts as wrong because the machine is busy.
    # Repeated every 0.1 s, in case a library swallows the exception.
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.1)
    try:
      return "yes" if equivalence.equivalent(**request) else "no"
    finally:
      signal.setitimer(signal.ITIMER_PROF, 0)
  except (_LateError, MemoryError):
    signal.setitimer(signal.ITIMER_PROF, 0)  # if `finally` was interrupted
    return "late"
  except Exception:  # libraries raise any type on text that is no mathematics
    return "no"


def main() -> None:
  """Serves requests until standard input ends."""
  soft, hard = map(float, sys.argv[1:])
  replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)  # keeps what libraries print out of the replies
  _, most = resource.getrlimit(resource.RLIMIT_AS)
  if most == resource.RLIM_INFINITY or most > _MOST_MEMORY:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
  signal.signal(signal.SIGPROF, _expire)
  # Imports the libraries before the first request, whose time is limited.
  equivalence.equivalent(r"\sqrt{4}+x", "2+x", "")
  print("ready", file=replies, flush=True)
  for line in sys.stdin:
    # A C thread ends this process even if Python is stuck.
    faulthandler.dump_traceback_later(hard, exit=True)
    reply = _answer(json.loads(line), soft)
    faulthandler.cancel_dump_traceback_later()
    print(reply, file=replies, flush=True)


if __name__ == "__main__":
  main()
