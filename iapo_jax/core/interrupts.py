"""Ctrl-C and SIGTERM wait until the step is finished and saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
  """A run that was asked to stop, and what it saved before."""

  def __init__(self, number: int, saved: str) -> None:
    """Remembers the signal.

    Args:
      number: of the signal.
      saved: what was saved and how to go on, for people.
    """
    super().__init__(saved)
    self.number = number


class Request:
  """Whether somebody asked to stop.

  Attributes:
    number: of the signal; 0 as long as nobody did.
  """

  def __init__(self) -> None:
    self.number = 0


@contextlib.contextmanager
def deferred() -> Iterator[Request]:
  """Turns the first signal into a request; a second one acts at once.

  Outside the main thread Python handles no signals: nothing is changed there.

  Yields:
    The request.
  """
  request = Request()
  if threading.current_thread() is not threading.main_thread():
    yield request
    return
  before = {
      number: signal.getsignal(number)
      for number in _SIGNALS
      # Who starts a run with a signal ignored (nohup does) means it.
      if signal.getsignal(number) is not signal.SIG_IGN
  }

  def restore() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  def note(number: int, _: FrameType | None) -> None:
    request.number = number
    restore()
    name = signal.Signals(number).name
    # Not print: the signal may have come in the middle of another one.
    text = f"\n{name}: finishing the step, then saving; again to stop at once\n"
    # Ctrl-C ends the reader of a pipe, too: nobody may be listening.
    with contextlib.suppress(OSError):
      os.write(2, text.encode())

  for number in before:
    signal.signal(number, note)
  try:
    yield request
  finally:
    restore()
