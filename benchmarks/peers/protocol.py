"""What workers of `step.py` share: turns, clocks and one line of JSON each.

A worker reads commands from its standard input, one a line, and answers each
with one line of JSON. Only the standard library is used: every worker runs in
an environment of its own.

  go     run exactly one step, answer with its seconds
  peak   (ours only) measure the machine's matrix products
"""

import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

PHASES = ("generation", "scoring", "update")


def load_job(path: str) -> dict[str, Any]:
  """What every contestant is told, as `step.py` wrote it."""
  return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def batch_of(job: dict[str, Any], step: int) -> list[list[int]]:
  """The prompts of a step, token ids."""
  count = job["prompts_per_step"]
  return job["prompts"][step * count : (step + 1) * count]


def as_text(ids: list[int]) -> str:
  """A prompt as the job's tokenizer reads it: a word for each token."""
  return " ".join(map(str, ids))


def reward(completion: str) -> float:
  """1 where the last token is even, which about half of each group is."""
  return float(completion[-1] in "02468")


def counted(
    prompts: Iterable[Sequence[int]], completions: Iterable[Sequence[int]]
) -> dict[str, Any]:
  """What a rollout was, so that it can be checked.

  Args:
    prompts: token ids, padding included where there is any.
    completions: token ids.

  Returns:
    The lengths there are, how many tokens of completions, and the sum of their
    ids, which tells rollouts apart.
  """
  found = list(completions)
  return {
      "prompt_lengths": sorted({len(ids) for ids in prompts}),
      "completion_lengths": sorted({len(ids) for ids in found}),
      "tokens": sum(len(ids) for ids in found),
      "checksum": int(sum(sum(map(int, ids)) for ids in found)),
  }


class Session:
  """A worker's side of the conversation, and its stopwatch.

  Attributes:
    seconds: of each phase of the step that runs.
  """

  def __init__(self) -> None:
    """Takes standard output for answers; what else is printed goes to stderr.

    That is done on the file descriptor: libraries print from C++, too.
    """
    self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    self.seconds: dict[str, float] = {}
    self._begin = 0.0
    self._open: tuple[str, float] | None = None

  def wait(self) -> str:
    """The next command; empty when there is none to come."""
    return sys.stdin.readline().strip()

  def answer(self, **facts: Any) -> None:
    """Sends one line."""
    # In kilobytes on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(facts | {"rss": peak}), file=self._answers, flush=True)

  def start(self) -> None:
    """A step begins."""
    self.seconds = dict.fromkeys(PHASES, 0.0)
    self._begin = time.perf_counter()

  def enter(self, phase: str) -> None:
    """A phase begins that lasts until the step ends."""
    self._open = phase, time.perf_counter()

  def stop(self) -> None:
    """The step has ended, all its arrays computed."""
    now = time.perf_counter()
    if self._open:
      phase, begin = self._open
      self.seconds[phase] += now - begin
      self._open = None
    self.seconds["step"] = now - self._begin

  def timed(
      self,
      phase: str,
      function: Callable,
      settle: Callable[[Any], Any] = lambda result: result,
  ) -> Callable:
    """A function whose calls count as a phase.

    Args:
      phase: of the step.
      function: what is called.
      settle: waits until what it returned is computed.

    Returns:
      The function, timed.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
      begin = time.perf_counter()
      result = function(*args, **kwargs)
      settle(result)
      self.seconds[phase] += time.perf_counter() - begin
      return result

    return call
