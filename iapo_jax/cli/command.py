"""Parses arguments and reports errors in one line, for every command."""

import argparse
import contextlib
import difflib
import math
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
  """An argparse parser whose errors take one line and exit with status 2."""

  def __init__(self, **more: Any) -> None:
    super().__init__(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **more,
    )

  def error(self, message: str) -> NoReturn:
    """Raises `ConfigError`, which `ending` prints."""
    raise ConfigError(f"{message}; see {self.prog} --help")

  def refuse(self, unknown: Sequence[str]) -> NoReturn:
    """Raises `ConfigError` for unknown arguments."""
    name = unknown[0].partition("=")[0]
    known = [x for action in self._actions for x in action.option_strings]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f": did you mean {close[0]}?" if close else ""
    self.error(f"unknown argument {unknown[0]!r}{hint}")


@contextlib.contextmanager
def ending() -> Iterator[None]:
  """Turns errors of a command into one line on stderr and a status.

  Exits with status 2 after a user's mistake, if a file cannot be read or
  written, or if a run stops because its numbers are no longer finite. An
  interrupted run exits with 128 + the signal's number, after a line that names
  the saved checkpoint.

  With several processes, the one that failed exits at once so that the others
  notice; those exit with status 1.
  """
  logging.set_verbosity(logging.WARNING)  # Orbax logs every file it writes
  if sys.stdout:
    # As stderr does: escapes characters that the terminal does not have.
    sys.stdout.reconfigure(errors="backslashreplace")
  # A stream that was closed before the start is None; print accepts that.
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
  """Runs a program that defines absl flags; `ending` reports its errors."""
  with ending():
    app.run(main, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except (flags.Error, ConfigError, OSError) as error:
    _stop(error)


def _report_failure(error: Exception) -> None:
  """Prints that this process failed, or that it lost another one."""
  own = f"process {jax.process_index()}"
  if not processes.is_lost(error):
    traceback.print_exc()
    print(f"error: {own} failed; the others stop, too", file=sys.stderr)
    return
  reason = " ".join(str(error).split())
  print(
      f"error: {own} lost another process, which prints why unless it was"
      f" killed ({reason}); the same command in all processes continues from"
      " the last checkpoint",
      file=sys.stderr,
  )


def _stop(error: BaseException) -> NoReturn:
  text = str(error).strip()
  if "Traceback" in text:
    # absl quotes the whole trace of an error in a configuration file.
    last = text.splitlines()[-1]
    text = last.partition("Error: ")[2] or last
  line = " ".join(text.split())
  print(f"error: {line}", file=sys.stderr)
  processes.leave(2)


class _Lasting:
  """A standard stream that outlives its reader.

  Ctrl-C also ends a `tee` at the other end of a pipe. Later output is dropped,
  and the program goes on.
  """

  def __init__(self, stream: TextIO) -> None:
    self._stream = stream

  def write(self, text: str) -> int:
    """Writes the text, or drops it if nobody reads."""
    try:
      return self._stream.write(text)
    except OSError:
      self._drop()
      return len(text)

  def flush(self) -> None:
    """Flushes the buffer, or drops it if nobody reads."""
    try:
      self._stream.flush()
    except OSError:
      self._drop()

  def _drop(self) -> None:
    """Sends the buffer and all later output to the null device."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, self._stream.fileno())
    os.close(nowhere)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


def add_process_arguments(parser: Parser) -> None:
  """Adds the arguments of commands that several processes can run together."""
  group = parser.add_argument_group(
      "several processes", "not needed on TPU VMs or under SLURM"
  )
  group.add_argument(
      "--coordinator_address",
      metavar="HOST:PORT",
      help="address of the first process",
  )
  group.add_argument("--num_processes", type=int, help="number of processes")
  group.add_argument(
      "--process_id", type=int, help="number of this process, from 0"
  )


def join_processes(given: argparse.Namespace) -> None:
  """Joins the processes of `add_process_arguments` or of the environment."""
  processes.join(
      given.coordinator_address, given.num_processes, given.process_id
  )


def at_least(low: float, kind: type = int) -> Callable[[str], float]:
  """Returns an argparse type: a finite number that is at least `low`."""

  def number(text: str) -> float:
    try:
      value = kind(text)
    except ValueError:
      value = None
    if value is None or not low <= value < math.inf:
      rule = f"{text!r}: must be a finite number, {low} or more"
      raise argparse.ArgumentTypeError(rule)
    return value

  return number


def words(text: str) -> list[str]:
  """Splits an argument at its commas; an argparse type."""
  return text.split(",") if text else []


def whole_numbers(flag: str, values: Sequence[str]) -> list[int]:
  """Returns the numbers of a list flag, each once, in order.

  Raises:
    ConfigError: if a value is no such number, or if there is none.
  """
  rule = "must be whole numbers below 2^32, with commas between"
  if not values:
    raise ConfigError(f"--{flag} = '': {rule}")
  for value in values:
    if not value.isdecimal() or int(value) >= 2**32:
      raise ConfigError(f"--{flag} = {value!r}: {rule}")
  return list(dict.fromkeys(int(value) for value in values))
