"""A process that compares answers, and may be killed at any time.

It reads one request a line, JSON, and writes one word a line: `ready` once,
then `yes`, `no` or `late` for each.
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
  """Past the libraries' `except Exception`."""


def _expire(*_: object) -> NoReturn:
  raise _LateError


def _answer(request: dict, seconds: float) -> str:
  try:
    # CPU time: a busy machine shall not make an answer wrong. Again and again,
    # should a library swallow the exception.
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.1)
    try:
      return "yes" if equivalence.equivalent(**request) else "no"
    finally:
      signal.setitimer(signal.ITIMER_PROF, 0)
  except (_LateError, MemoryError):
    signal.setitimer(signal.ITIMER_PROF, 0)  # should it have come in `finally`
    return "late"
  except Exception:  # what the libraries raise on what is no mathematics
    return "no"


def main() -> None:
  """Serves until its standard input ends."""
  soft, hard = map(float, sys.argv[1:])
  replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)  # whatever a library prints is no reply
  _, most = resource.getrlimit(resource.RLIMIT_AS)
  if most == resource.RLIM_INFINITY or most > _MOST_MEMORY:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
  signal.signal(signal.SIGPROF, _expire)
  equivalence.equivalent(r"\sqrt{4}+x", "2+x", "")  # imports what it needs
  print("ready", file=replies, flush=True)
  for line in sys.stdin:
    # From a thread of C: ends this process should nobody else.
    faulthandler.dump_traceback_later(hard, exit=True)
    reply = _answer(json.loads(line), soft)
    faulthandler.cancel_dump_traceback_later()
    print(reply, file=replies, flush=True)


if __name__ == "__main__":
  main()
