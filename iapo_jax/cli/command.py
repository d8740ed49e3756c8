"""What every command shares: its arguments, and errors in one line."""

import argparse
import contextlib
import difflib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

import jax
from absl import app, flags, logging

from iapo_jax.core import processes
from iapo_jax.core.errors import ConfigError, SaveError, SharedError
from iapo_jax.core.interrupts import Interrupted


class Parser(argparse.ArgumentParser):
  """argparse's parser, whose errors are ours: one line, status 2."""

  def __init__(self, **more: Any) -> None:
    super().__init__(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **more,
    )

  def error(self, message: str) -> NoReturn:
    """Raises what `ending` prints."""
    raise ConfigError(f"{message}; see {self.prog} --help")

  def refuse(self, unknown: Sequence[str]) -> NoReturn:
    """Raises for arguments that no command takes."""
    name = unknown[0].partition("=")[0]
    known = [x for action in self._actions for x in action.option_strings]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f": did you mean {close[0]}?" if close else ""
    self.error(f"unknown argument {unknown[0]!r}{hint}")


@contextlib.contextmanager
def ending() -> Iterator[None]:
  """Turns errors of a command into one line on stderr and a status.

  A user's mistake, a file that cannot be read or written, or a run that stops
  because its numbers are no longer finite: status 2. An interrupted run:
  128 + the signal's number, after a line that says what is saved.

  With several processes, the one that failed exits at once so that the others
  learn of it; those exit with status 1.
  """
  logging.set_verbosity(logging.WARNING)  # Orbax logs every file it writes
  if sys.stdout:
    # As stderr does: a name may hold what the terminal has no character for.
    sys.stdout.reconfigure(errors="backslashreplace")
  # A stream that was closed from the start is None, and print knows that.
  sys.stdout = sys.stdout and _Lasting(sys.stdout)
  sys.stderr = sys.stderr and _Lasting(sys.stderr)
  try:
    yield
  except (ConfigError, FloatingPointError, SaveError, OSError) as error:
    _stop(error)
  except SharedError as error:
    if processes.is_first():  # all processes have this error
      print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except Interrupted as interrupted:
    if processes.is_first():
      print(f"interrupted: {interrupted}", file=sys.stderr)
    sys.exit(128 + interrupted.number)
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    processes.leave(128 + signal.SIGINT)
  except Exception as error:
    if not jax.distributed.is_initialized():
      raise
    _report_failure(error)
    processes.leave(1)


def run(main: Callable[[list[str]], None]) -> None:
  """Runs a program that defines absl flags, with the errors of `ending`."""
  with ending():
    app.run(main, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except (flags.Error, ConfigError, OSError) as error:
    _stop(error)


def _report_failure(error: Exception) -> None:
  """Says which of several processes failed, or lost another one."""
  own = f"process {jax.process_index()}"
  if not processes.is_lost(error):
    traceback.print_exc()
    print(f"error: {own} failed; the others end, too", file=sys.stderr)
    return
  reason = " ".join(str(error).split())
  print(
      f"error: {own} lost another one, which tells why, or was killed"
      f" ({reason}); the same command in all of them goes on from the last"
      " checkpoint",
      file=sys.stderr,
  )


def _stop(error: BaseException) -> NoReturn:
  text = str(error).strip()
  if "Traceback" in text:
    # An error in the configuration file itself: absl quotes the whole trace.
    text = text.splitlines()[-1].partition("Error: ")[2]
  line = " ".join(text.split())
  print(f"error: {line}", file=sys.stderr)
  processes.leave(2)


class _Lasting:
  """A standard stream that outlives its reader.

  Ctrl-C also ends the `tee` at the other end of a pipe: what is written after
  that is lost, and nothing else is.
  """

  def __init__(self, stream: TextIO) -> None:
    self._stream = stream

  def write(self, text: str) -> int:
    """Writes, or drops what nobody reads."""
    try:
      return self._stream.write(text)
    except OSError:
      self._drop()
      return len(text)

  def flush(self) -> None:
    """Flushes, or drops what nobody reads."""
    try:
      self._stream.flush()
    except OSError:
      self._drop()

  def _drop(self) -> None:
    """Sends what is in the buffer and what follows nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, self._stream.fileno())
    os.close(nowhere)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


def add_process_arguments(parser: Parser) -> None:
  """Adds the arguments of commands that several processes can run together."""
  group = parser.add_argument_group(
      "several processes", "where neither a TPU VM nor SLURM says it"
  )
  group.add_argument(
      "--coordinator_address", metavar="HOST:PORT", help="of the first process"
  )
  group.add_argument("--num_processes", type=int, help="how many there are")
  group.add_argument(
      "--process_id", type=int, help="which of them this is, from 0"
  )


def join_processes(given: argparse.Namespace) -> None:
  """Joins the processes of `add_process_arguments` or of the environment."""
  processes.join(
      given.coordinator_address, given.num_processes, given.process_id
  )


def at_least(low: float, kind: type = int) -> Callable[[str], float]:
  """An argparse type: a number from `low` on."""

  def number(text: str) -> float:
    try:
      value = kind(text)
    except ValueError:
      value = None
    if value is None or not value >= low:
      rule = f"{text!r}: must be a number, {low} or more"
      raise argparse.ArgumentTypeError(rule)
    return value

  return number


def words(text: str) -> list[str]:
  """An argparse type: words apart by commas."""
  return text.split(",") if text else []


def whole_numbers(flag: str, values: Sequence[str]) -> list[int]:
  """The numbers of a list flag, each once, in order.

  Raises:
    ConfigError: for something else, or for none.
  """
  rule = "must be whole numbers below 2^32, apart by commas"
  if not values:
    raise ConfigError(f"--{flag} '': {rule}")
  for value in values:
    if not value.isdecimal() or int(value) >= 2**32:
      raise ConfigError(f"--{flag} {value!r}: {rule}")
  return list(dict.fromkeys(int(value) for value in values))
