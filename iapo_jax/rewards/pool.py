"""A pool of processes that judge answers and can be killed.

Processes are spawned, never forked, since JAX has threads. Requests and replies
are lines of text: nothing is pickled, and the main program is not imported
again.
"""

import collections
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import connection
from typing import Any

# JSON values: answer, gold answer and prose around the answer to compare; or
# the arguments of `gym_entries.scoring`
Task = tuple[Any, ...]

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_MODULE = "iapo_jax.rewards.worker"
_START_SECONDS = 300.0
_MOST_FAILED_STARTS = 4


class Pool:
  """A pool whose processes start when they are first needed."""

  def __init__(
      self,
      workers: int,
      *,
      soft_seconds: float,
      hard_seconds: float,
      prepare_seconds: float = 0.0,
      judge: str = "comparing",
  ) -> None:
    """Makes a pool without starting processes.

    Args:
      workers: number of processes.
      soft_seconds: CPU time for one answer, after which the process gives up.
      hard_seconds: wall-clock time for one answer, after which the process is
        killed.
      prepare_seconds: wall-clock time to make what an answer is judged by,
        such as its problem, before the time for the answer begins; 0 if there
        is nothing to make.
      judge: what the processes do with answers: `comparing` or `scoring`.
    """
    self._size = workers
    self._how = soft_seconds, prepare_seconds, hard_seconds, judge
    self._workers: list[_Worker] = []
    self._failed_starts = 0
    self._owner = os.getpid()
    self._closing = False
    self._lock = threading.Lock()

  def start(self) -> None:
    """Starts the processes without waiting for them."""
    with self._lock:
      self._fill()

  def judge(self, tasks: Sequence[Task]) -> list[Any]:
    """Returns the judgement of each answer.

    None means that it took too long. A text is the reason why it could not be
    judged.

    Raises:
      RuntimeError: if no process can be started.
    """
    with self._lock:
      self._fill()
      try:
        return self._run(tasks)
      except BaseException:
        # Otherwise the next call would read the replies of this one.
        busy = [w for w in self._workers if w.task is not None]
        for worker in busy:
          worker.kill()
          self._workers.remove(worker)
        raise

  def close(self) -> None:
    """Ends all processes; later calls start new ones.

    A call of `judge` in progress raises RuntimeError.
    """
    if os.getpid() != self._owner:
      return  # in a fork: the processes belong to its parent
    self._closing = True
    for worker in list(self._workers):
      worker.signal()
    with self._lock:
      for worker in self._workers:
        worker.kill()
      self._workers.clear()
      self._closing = False

  def _fill(self) -> None:
    while len(self._workers) < self._size:
      self._workers.append(_Worker(*self._how))

  def _run(self, tasks: Sequence[Task]) -> list[Any]:
    waiting = collections.deque(enumerate(tasks))
    results: list[Any] = [None] * len(tasks)
    left = len(tasks)
    again = set(range(len(tasks)))  # may be retried on another process
    while left:
      for worker in self._workers:
        if worker.is_idle and waiting:
          worker.send(*waiting.popleft())
      busy = [worker for worker in self._workers if not worker.is_idle]
      soonest = min(worker.deadline for worker in busy)
      readable = connection.wait(
          [worker.replies for worker in busy],
          max(soonest - time.monotonic(), 0.0),
      )
      for worker in busy:
        index = worker.task
        decision = None
        if worker.replies in readable:
          decision = worker.receive()
        elif worker.deadline <= time.monotonic():
          worker.kill()
        else:
          continue
        if index is not None and worker.task is None:
          gone = worker.is_dead and time.monotonic() < worker.deadline
          if gone and index in again:
            again.remove(index)
            waiting.appendleft((index, tasks[index]))
          else:
            results[index] = worker.unprepared or decision
            left -= 1
        if worker.is_dead:
          self._replace(worker)
    return results

  def _replace(self, worker: "_Worker") -> None:
    self._workers.remove(worker)
    if self._closing:
      raise RuntimeError("the grading processes were closed while they judged")
    self._failed_starts = 0 if worker.was_ready else self._failed_starts + 1
    if self._failed_starts > _MOST_FAILED_STARTS:
      raise RuntimeError(
          "grading processes end before they are ready; run this to see why:"
          f" {worker.command}"
      )
    self._fill()


class _Worker:
  """A grading process.

  Attributes:
    command: the shell command that starts it, for error messages.
    replies: the stream that it writes replies to.
    task: the index of its task; None if it has none.
    deadline: time of the monotonic clock at which it is killed if it has not
      replied.
    was_ready: whether it ever reported that it is ready.
    unprepared: what to tell if it ends now, before the time of an answer has
      begun; empty afterwards, or if there is nothing to make.
    is_dead: whether it was killed.
  """

  def __init__(
      self, soft: float, prepare: float, hard: float, judge: str
  ) -> None:
    self._prepare, self._hard = prepare, hard
    # A second watchdog inside the process ends it even if this one has ended.
    seconds = map(str, (soft, prepare, hard + 1))
    arguments = ["-m", _MODULE, *seconds, judge]
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, paths))
    python = f"PYTHONPATH={path} {sys.executable} -P"
    self.command = " ".join([python, *arguments])
    try:
      self._process = subprocess.Popen(
          [sys.executable, "-P", *arguments],
          stdin=subprocess.PIPE,
          stdout=subprocess.PIPE,
          stderr=subprocess.DEVNULL,
          env={**os.environ, "PYTHONPATH": path},
          start_new_session=True,  # Ctrl-C reaches only the main program
      )
    except (OSError, TypeError) as error:
      raise RuntimeError(
          f"cannot start a grading process with {sys.executable!r}: {error}"
      ) from error
    self.replies = self._process.stdout
    self.task: int | None = None
    self.deadline = time.monotonic() + _START_SECONDS
    self.was_ready = False
    self.unprepared = ""
    self.is_dead = False
    self._unread = b""

  @property
  def is_idle(self) -> bool:
    """Whether it waits for a task."""
    return self.was_ready and self.task is None

  def send(self, index: int, task: Task) -> None:
    """Sends a task."""
    self.task = index
    self.deadline = time.monotonic() + self._prepare + self._hard
    if self._prepare:
      self.unprepared = (
          "a grading process ended while it made it, or took over"
          f" {self._prepare + self._hard:g} s"
      )
    # If the process has ended, `receive` notices.
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(json.dumps(task).encode() + b"\n")
      self._process.stdin.flush()

  def receive(self) -> Any:
    """Reads what there is: a judgement, or None if it is late or missing.

    Only a judgement ends the task.
    """
    # Not `readline`, whose buffer would hide a second line from the selector.
    arrived = os.read(self.replies.fileno(), 2**16)
    *replies, self._unread = (self._unread + arrived).split(b"\n")
    try:
      found = [self._take(json.loads(reply)) for reply in replies]
    except ValueError:
      found = []
      arrived = b""  # it cannot be understood any more
    if not arrived:  # the process ended
      self.kill()
    return found[-1] if found else None

  def _take(self, reply: Any) -> Any:
    if reply == "ready":
      self.was_ready = True
      return None
    self.unprepared = ""
    if reply == "begun":
      self.deadline = time.monotonic() + self._hard
      return None
    self.task = None
    return reply[0]

  def signal(self) -> None:
    """Kills the process without waiting; any thread may call it."""
    self._process.kill()

  def kill(self) -> None:
    """Kills the process and waits for its end."""
    self._process.kill()
    self._process.wait()
    for stream in (self._process.stdin, self.replies):
      with contextlib.suppress(OSError):  # if the process left data unread
        stream.close()
    self.task = None
    self.is_dead = True
