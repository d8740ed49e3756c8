"""Defers Ctrl-C and SIGTERM until the step is done and saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
  """Ends a run that a signal asked to stop."""

  def __init__(self, number: int, saved: str) -> None:
    """Takes the signal's number, and a message on what is saved."""
    super().__init__(saved)
    self.number = number


class Request:
  """A request to stop.

  Attributes:
    number: the signal's number; 0 until a signal arrives.
  """

  def __init__(self) -> None:
    self.number = 0


@contextlib.contextmanager
def deferred() -> Iterator[Request]:
  """Turns the first signal into a request; a second one acts immediately.

  Does nothing outside the main thread, where Python handles no signals.
  """
  request = Request()
  if threading.current_thread() is not threading.main_thread():
    yield request
    return
  before = {
      number: signal.getsignal(number)
      for number in _SIGNALS
      # A signal that is ignored at the start (nohup) stays ignored.
      if signal.getsignal(number) is not signal.SIG_IGN
  }

  def restore() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  def note(number: int, _: FrameType | None) -> None:
    request.number = number
    restore()
    name = signal.Signals(number).name
    # Not print: the signal may arrive in the middle of another print.
    text = f"\n{name}: finishing the step, then saving; repeat to stop now\n"
    # Ctrl-C may also have ended the process that reads this output.
    with contextlib.suppress(OSError):
      os.write(2, text.encode())

  for number in before:
    signal.signal(number, note)
  try:
    yield request
  finally:
    restore()
