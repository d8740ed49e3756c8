"""Several processes that run the same program, each with its own devices.

JAX connects the processes, and a compiled program spans all their devices. This
module covers the host side: work that one process does for all, values that
all must share, and failures, so that no process waits for one that failed. In
a single process these functions cost nothing.
"""

import faulthandler
import glob
import importlib.util
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from iapo_jax.core.errors import ConfigError, SaveError, SharedError

T = typing.TypeVar("T")

_HEARTBEAT = 30  # seconds without a heartbeat until a process counts as dead
_SHUTDOWN = 60  # seconds to wait at exit for the other processes
# Texts of runtime errors that mean that another process was lost. Our own code
# raises no such errors.
_LOST = re.compile(
    r"gloo|nccl|heartbeat|coordination service|connection (closed|reset)"
    r"|socket closed|unavailable:",
    re.IGNORECASE,
)


def join(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
) -> None:
  """Connects this process to the others; call it before any other use of JAX.

  Without arguments, reads the environment of a TPU VM, SLURM's `srun` or Open
  MPI, and does nothing if it names no other processes. Afterwards every
  process but the first prints only errors.

  Args:
    coordinator: HOST:PORT of the first process.
    count: number of processes.
    index: this process, from 0.

  Raises:
    ConfigError: if only some arguments are given, they contradict each other,
      or the connection fails.
  """
  given = any(x is not None for x in (coordinator, count, index))
  if given:
    _check(coordinator, count, index)
  sure = given or _is_one_of_several()
  if not sure and not _is_on_tpu():
    return
  try:
    jax.distributed.initialize(
        coordinator,
        count,
        index,
        heartbeat_timeout_seconds=_HEARTBEAT,
        shutdown_timeout_seconds=_SHUTDOWN,
    )
  except (ValueError, RuntimeError) as error:
    # A TPU VM may be the only process.
    if sure or jax.process_count() > 1:
      reason = " ".join(str(error).split())
      raise ConfigError(
          f"cannot connect to the other processes: {reason}"
      ) from error
  # If the first process dies, the runtime ends the others with a message. Pages
  # of Python stacks would hide it.
  faulthandler.disable()
  if not is_first():
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _check(
    coordinator: str | None, count: int | None, index: int | None
) -> None:
  """Raises `ConfigError` if the flags are incomplete or impossible."""
  if not coordinator or count is None or index is None:
    raise ConfigError(
        "--coordinator_address, --num_processes and --process_id: give all"
        " three or none"
    )
  if not re.fullmatch(r".+:\d+", coordinator):
    raise ConfigError(
        f"--coordinator_address = {coordinator!r}: must be HOST:PORT"
    )
  if count < 1:
    raise ConfigError(f"--num_processes = {count}: must be at least 1")
  if not 0 <= index < count:
    raise ConfigError(
        f"--process_id = {index}: must be in [0, {count - 1}], for"
        f" --num_processes = {count}"
    )


def _is_one_of_several() -> bool:
  """Returns whether SLURM's `srun` or Open MPI started several processes."""
  counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
  for name in counts:
    text = os.environ.get(name) or "1"
    if not text.isdecimal():
      raise ConfigError(f"{name} = {text!r}: must be a number of processes")
    if int(text) > 1:
      return True
  return False


def _is_on_tpu() -> bool:
  """Returns whether this host has TPUs, which may be part of a larger slice."""
  platforms = jax.config.jax_platforms or "tpu"
  chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
  installed = importlib.util.find_spec("libtpu") is not None
  return bool("tpu" in platforms and chips and installed)


def is_first() -> bool:
  """Returns whether this process writes and prints for all."""
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def everywhere(run: Callable[[], T]) -> T:
  """Runs a function in every process and returns this process's result.

  If `run` raises a `ConfigError`, `SaveError` or `OSError` in any process, all
  raise a `SharedError` with its message; a single process raises the error
  itself.
  """
  if jax.process_count() == 1:
    return run()
  problem, result = "", None
  try:
    result = run()
  except (ConfigError, SaveError, OSError) as error:
    problem = str(error) or type(error).__name__
  for index, text in enumerate(exchange(problem)):
    if text:
      raise SharedError(f"process {index}: {text}")
  return typing.cast(T, result)


def on_first(run: Callable[[], T]) -> T:
  """Runs a function in the first process and returns its result in all.

  The result must be JSON. Errors are those of `everywhere`.
  """
  if jax.process_count() == 1:
    return run()
  text = everywhere(lambda: json.dumps(run()) if is_first() else "")
  return json.loads(exchange(text)[0])


def highest(number: int) -> int:
  """Returns the highest number of all processes; every process must call it."""
  if jax.process_count() == 1:
    return number
  numbers = multihost_utils.process_allgather(np.int32(number))
  return int(np.max(numbers))


def exchange(text: str) -> list[str]:
  """Returns the texts of all processes in order; every process must call it."""
  if jax.process_count() == 1:
    return [text]
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(data.size))
  padded = np.zeros(max(int(np.max(sizes)), 1), np.uint8)
  padded[: data.size] = data
  rows = multihost_utils.process_allgather(padded)
  return [
      row[:size].tobytes().decode()
      for row, size in zip(rows, sizes, strict=True)
  ]


def gather(tree: Any) -> Any:
  """Returns global arrays as whole NumPy arrays; every process must call it."""
  return multihost_utils.process_allgather(tree, tiled=True)


def check_same(what: Mapping[str, Any]) -> None:
  """Raises `SharedError` if processes were started with different values.

  `what` maps names, used in the message, to JSON values.
  """

  def compare() -> None:
    for name, value in ours.items():
      if theirs[name] != value:
        raise ConfigError(
            f"{name} = {value!r}: the first process has {theirs[name]!r};"
            " start all processes with the same value"
        )

  ours = json.loads(json.dumps(dict(what)))
  theirs = on_first(lambda: ours)
  everywhere(compare)


def is_lost(error: BaseException) -> bool:
  """Returns whether an error means that another process failed."""
  return jax.process_count() > 1 and bool(_LOST.search(str(error)))


def leave(status: int) -> typing.NoReturn:
  """Exits with a status.

  With other processes running, exits immediately so that none waits for this
  one; the others notice and exit, too.
  """
  if not jax.distributed.is_initialized():
    sys.exit(status)
  for stream in (sys.stdout, sys.stderr):
    if stream:
      stream.flush()
  os._exit(status)
