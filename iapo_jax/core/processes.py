"""Several processes that run the same program, each with its own devices.

JAX's own runtime connects them, one process a host or an accelerator, and a
compiled program spans all their devices. What is no such program is said here:
what one process does for all, what all must agree on, and that none waits for
ever where another one failed. Alone, a process does all of it at no cost.
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

_HEARTBEAT = 30  # seconds without one, until a process counts as dead
_SHUTDOWN = 60  # seconds to wait at the end for the others' end
# What the runtimes say of a peer that is gone; no program of ours fails so.
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
  """Joins the others, if there are any; before anything else is done with JAX.

  Without arguments the environment tells: that of a TPU VM, of SLURM's `srun`
  or of Open MPI. Where it tells of no others, nothing is joined. Those that are
  not the first print nothing but errors from then on.

  Args:
    coordinator: HOST:PORT of the first process.
    count: of the processes.
    index: of this one, from 0.

  Raises:
    ConfigError: where only some arguments are given or they contradict each
      other, or nobody can be joined.
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
    # One TPU VM may have nobody beside it.
    if sure or jax.process_count() > 1:
      reason = " ".join(str(error).split())
      raise ConfigError(
          f"the other processes cannot be joined: {reason}"
      ) from error
  # Where the first process dies, the runtime ends the others: it says so, and
  # pages of Python's stacks would only hide it.
  faulthandler.disable()
  if not is_first():
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _check(
    coordinator: str | None, count: int | None, index: int | None
) -> None:
  """Whether the flags say all, and what can be."""
  if not coordinator or count is None or index is None:
    raise ConfigError(
        "--coordinator_address, --num_processes and --process_id: must be"
        " given together, or none of them"
    )
  if not re.fullmatch(r".+:\d+", coordinator):
    raise ConfigError(
        f"--coordinator_address = {coordinator!r}: must be HOST:PORT"
    )
  if not 0 <= index < count:
    raise ConfigError(
        f"--process_id = {index}: must be in [0, {count - 1}], for"
        f" --num_processes = {count}"
    )


def _is_one_of_several() -> bool:
  """Whether SLURM's `srun` or Open MPI started more than this one."""
  counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
  return any(int(os.environ.get(name) or 1) > 1 for name in counts)


def _is_on_tpu() -> bool:
  """Whether this host has TPUs, of which others may have more."""
  platforms = jax.config.jax_platforms or "tpu"
  chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
  installed = importlib.util.find_spec("libtpu") is not None
  return bool("tpu" in platforms and chips and installed)


def is_first() -> bool:
  """Whether this process writes and prints for all."""
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def everywhere(run: Callable[[], T]) -> T:
  """Runs something in every process; where one fails, all do.

  Args:
    run: of all processes; it may raise a `ConfigError`, `SaveError` or
      `OSError` in any of them.

  Returns:
    What it returned here.

  Raises:
    SharedError: in every process, with what one of them raised. Alone, the
      error itself is raised.
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
  """Runs something in the first process alone; all learn the result.

  Args:
    run: of the first process; it returns values of JSON.

  Returns:
    What it returned, in every process.

  Raises:
    SharedError: as `everywhere`.
  """
  if jax.process_count() == 1:
    return run()
  text = everywhere(lambda: json.dumps(run()) if is_first() else "")
  return json.loads(exchange(text)[0])


def highest(number: int) -> int:
  """The highest of the processes' numbers; every process must ask."""
  if jax.process_count() == 1:
    return number
  numbers = multihost_utils.process_allgather(np.int32(number))
  return int(np.max(numbers))


def exchange(text: str) -> list[str]:
  """The texts of all processes, in their order; every process must ask."""
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
  """Global arrays, whole and as NumPy's; every process must ask."""
  return multihost_utils.process_allgather(tree, tiled=True)


def check_same(what: Mapping[str, Any]) -> None:
  """Whether the processes were started with the same.

  Args:
    what: values of JSON by what they are.

  Raises:
    SharedError: where one has another value than the first has.
  """

  def compare() -> None:
    for name, value in ours.items():
      if theirs[name] != value:
        raise ConfigError(
            f"{name} = {value!r}: the first process has {theirs[name]!r}; all"
            " must be started with the same"
        )

  ours = json.loads(json.dumps(dict(what)))
  theirs = on_first(lambda: ours)
  everywhere(compare)


def is_lost(error: BaseException) -> bool:
  """Whether it is another process that failed, and not this one."""
  return jax.process_count() > 1 and bool(_LOST.search(str(error)))


def leave(status: int) -> typing.NoReturn:
  """Ends this process; alone as any other, else at once.

  The others find out that it is gone, and end, too. Waiting for them would be
  waiting for processes that wait for this one.

  Args:
    status: for the shell.
  """
  if not jax.distributed.is_initialized():
    sys.exit(status)
  for stream in (sys.stdout, sys.stderr):
    if stream:
      stream.flush()
  os._exit(status)
