"""What every command shares: quiet libraries, and user errors in one line."""

import difflib
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from iapo_jax.config import parsing as config_lib
from iapo_jax.core import processes
from iapo_jax.core.errors import ConfigError, SaveError, SharedError
from iapo_jax.core.interrupts import Interrupted

# Before transformers is imported, which says that torch is missing.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

_OVERRIDE = "--config."


def run(main: Callable[[list[str]], None]) -> None:
  """`absl.app.run`, where a user's mistake ends in one line and status 2.

  So does a run that is stopped because its numbers are no longer finite, or
  because something cannot be read or written. One that was interrupted ends in
  a line that says what was saved, and with the status that shells give such a
  process: 128 + the signal's number.

  One of several processes ends at once where it alone failed, so that the
  others learn of it; where another one failed, in a line and with status 1.

  Args:
    main: called with the arguments that are no flags.
  """
  logging.set_verbosity(logging.WARNING)  # Orbax tells every file it writes
  if sys.stdout:
    # As stderr does: a name may hold what the terminal has no character for.
    sys.stdout.reconfigure(errors="backslashreplace")
  # One that was closed from the start is None, and print knows that.
  sys.stdout = sys.stdout and _Lasting(sys.stdout)
  sys.stderr = sys.stderr and _Lasting(sys.stderr)
  try:
    app.run(main, flags_parser=_parse_flags)
  except (ConfigError, FloatingPointError, SaveError, OSError) as error:
    _stop(error)
  except SharedError as error:
    # All know of it, and one of them tells.
    if processes.is_first():
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
    _tell_failure(error)
    processes.leave(1)


def _tell_failure(error: Exception) -> None:
  """What one of several processes says before it ends."""
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
    """From here on, and for what is still in the buffer: nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, self._stream.fileno())
    os.close(nowhere)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


def define_process_flags() -> None:
  """Flags of the commands that several processes can run together."""
  flags.DEFINE_string(
      "coordinator_address",
      None,
      "HOST:PORT of the first of several processes, where neither a TPU VM nor"
      " SLURM tells.",
  )
  flags.DEFINE_integer("num_processes", None, "How many they are.")
  flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def join_processes() -> None:
  """`processes.join` by `define_process_flags` or the environment."""
  given = flags.FLAGS
  processes.join(
      given.coordinator_address, given.num_processes, given.process_id
  )


def load_config() -> tuple[config_lib.Config, str]:
  """The checked configuration of the flag `--config`.

  Returns:
    The configuration, and the flag's value: FILE or FILE:VARIANT.

  Raises:
    ConfigError: where there is no such file, or a rule is broken.
  """
  flag = flags.FLAGS["config"]
  name = config_flags.get_config_filename(flag)
  path = pathlib.Path(name.partition(":")[0])
  if not path.is_file():
    raise ConfigError(f"--config = {str(path)!r}: no such file")
  return config_lib.parse(flag.value), name


def whole_numbers(flag: str, values: Sequence[str]) -> list[int]:
  """The numbers of a list flag, each once.

  Args:
    flag: its name.
    values: as they were given.

  Returns:
    The numbers, in order.

  Raises:
    ConfigError: for something else.
  """
  rule = "must be whole numbers below 2^32, apart by commas"
  if not values:
    raise ConfigError(f"--{flag} '': {rule}")
  for value in values:
    if not value.isdecimal() or int(value) >= 2**32:
      raise ConfigError(f"--{flag} {value!r}: {rule}")
  return list(dict.fromkeys(int(value) for value in values))


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    _check_overrides(argv)
    return flags.FLAGS(argv)
  except (flags.Error, ConfigError, OSError) as error:
    _stop(error)


def _check_overrides(argv: Sequence[str]) -> None:
  known = config_lib.flatten(config_lib.Config())
  for argument in argv[1:]:
    name, _, value = argument.removeprefix(_OVERRIDE).partition("=")
    if argument.startswith(_OVERRIDE) and name not in known:
      close = difflib.get_close_matches(name, known, n=1)
      hint = f"; did you mean config.{close[0]}?" if close else ""
      raise ConfigError(
          f"config.{name} = {value!r}: unknown field{hint}"
      )


def _stop(error: BaseException) -> None:
  text = str(error).strip()
  if "Traceback" in text:
    # An error in the config file itself: absl quotes the whole trace.
    text = text.splitlines()[-1].partition("Error: ")[2]
  line = " ".join(text.split())
  print(f"error: {line}", file=sys.stderr)
  processes.leave(2)
