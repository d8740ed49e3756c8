"""Compiled programs: kept from one start of a run to the next, and their cost.

JAX can write what it compiled to a folder, and reads it there the next time
that the same program is asked for: the same operations, options and versions on
the same kind of devices (a CPU's instruction set included). What it reads is
run as it is, so that such a folder must be as trusted as the code itself.

A program that calls the host (`reward.grader = host`) is kept by JAX 0.11 and
later; earlier ones never write it, and compile it at every start.
"""

import collections
import contextlib
import dataclasses
import glob
import pathlib
import re
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.monitoring
from jax.experimental.compilation_cache import compilation_cache

from iapo_jax.core.types import PyTree

_UNREADABLE = "Error reading persistent compilation cache entry for "
_CACHE = "/jax/compilation_cache/"
_TRACING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
)
_COMPILING = "/jax/core/compile/backend_compile_duration"


def place(folder: pathlib.Path | None) -> str | None:
  """Where programs are kept.

  Args:
    folder: of the run; None for none.

  Returns:
    JAX's own setting, where somebody made one (JAX_COMPILATION_CACHE_DIR),
    else the folder; None where neither is there, or JAX's cache is turned off
    (JAX_ENABLE_COMPILATION_CACHE=false).
  """
  if not jax.config.jax_enable_compilation_cache:
    return None
  own = jax.config.jax_compilation_cache_dir
  return own or (str(folder) if folder else None)


def keeps_host_calls() -> bool:
  """Whether this JAX keeps programs that call the host."""
  return jax.__version_info__ >= (0, 11)


@contextlib.contextmanager
def kept(folder: pathlib.Path | None) -> Iterator[None]:
  """Keeps what this process compiles in a folder, and reads it there.

  JAX has one cache a process, so this holds for all threads. Nothing is
  changed where somebody has told JAX of a cache. A file that cannot be read is
  told of and written anew; it stops nothing.

  Args:
    folder: made when the first program is compiled; None changes nothing.

  Yields:
    Nothing.
  """
  if folder is None or jax.config.jax_compilation_cache_dir:
    yield
    return
  cache = {
      # Wherever the process goes.
      "jax_compilation_cache_dir": str(folder.resolve()),
      # JAX leaves out what took less than a second, which on a small model is
      # most, and on a busy machine something else each time. A run has some
      # twenty programs, and the small ones are a few kilobytes each.
      "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  with _mending(folder.resolve()):
    try:
      with settings(**cache):
        compilation_cache.reset_cache()  # it stays with its first folder
        yield
    finally:
      compilation_cache.reset_cache()


@contextlib.contextmanager
def settings(**values: Any) -> Iterator[None]:
  """JAX's configuration with other values for a while.

  Args:
    **values: by their names in `jax.config`.

  Yields:
    Nothing.
  """
  before = {name: getattr(jax.config, name) for name in values}
  try:
    for name, value in values.items():
      jax.config.update(name, value)
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


def lower(
    program: jax.stages.Wrapped, *arguments: PyTree
) -> jax.stages.Lowered:
  """A program that does not say of which lines of code it is.

  Scopes keep their names. The compiler for TPUs (libtpu 0.0.42) puts nested
  programs together whenever it asks how often a loop runs, and compares their
  stacks of lines each time: minutes for a step, and for some steps it never
  ends.

  Args:
    program: of `jax.jit`.
    *arguments: of it, or their types.

  Returns:
    It, for its arguments.
  """
  with settings(jax_traceback_in_locations_limit=0):
    return program.lower(*arguments)


@contextlib.contextmanager
def _mending(folder: pathlib.Path) -> Iterator[None]:
  """Removes files that JAX cannot read, before it compiles their programs.

  JAX warns, compiles, and writes only where there is no file yet: a damaged one
  would be read in vain at every start. The warning names the program, not the
  file; others of the same name are written again when they are compiled again.
  """
  with warnings.catch_warnings():
    warnings.filterwarnings("always", message=_UNREADABLE)
    show = warnings.showwarning

    def remove(message: Warning | str, *args: Any, **kwargs: Any) -> None:
      found = re.match(_UNREADABLE + "'(.+?)'", str(message))
      if not found:
        show(message, *args, **kwargs)
        return
      for path in folder.glob(f"{glob.escape(found[1])}-*-cache"):
        path.unlink(missing_ok=True)
      print(
          f"warning: {str(folder)!r}: what is kept of {found[1]} cannot be"
          " read; it is compiled and written again",
          flush=True,
      )

    warnings.showwarning = remove
    yield


@dataclasses.dataclass(frozen=True)
class Account:
  """What compiling was in a span of time.

  Attributes:
    seconds: the whole span.
    tracing: seconds of it in which Python functions became programs.
    compiling: seconds of it in which programs were compiled or read.
    programs: how many.
    read: those of them that were read instead of compiled.
    written: those of them that were kept.
  """

  seconds: float
  tracing: float
  compiling: float
  programs: int
  read: int
  written: int

  def __sub__(self, before: "Account") -> "Account":
    """What came after an earlier account."""
    return Account(*(
        getattr(self, f.name) - getattr(before, f.name)
        for f in dataclasses.fields(self)
    ))

  @property
  def was_read(self) -> bool:
    """Whether there was something to compile, and nothing had to be."""
    return 0 < self.programs == self.read

  def origin(self, *, calls_host: bool) -> str:
    """Where a program came from, and whether the next start will have it.

    Args:
      calls_host: whether it does.

    Returns:
      Words for people.
    """
    if self.was_read:
      return "read from the cache"
    if self.written:
      return "kept for the next start"
    if calls_host and not keeps_host_calls():
      return "cannot be kept: it calls the host"
    return "not kept"


class Meter:
  """Listens to what JAX tells of its compiling, while it is entered."""

  def __init__(self, start: float) -> None:
    """Begins an account.

    Args:
      start: of its time, of `time.perf_counter`.
    """
    self._start = start
    self._busy: list[tuple[float, float]] = []
    self._compiling = 0.0
    self._events: collections.Counter[str] = collections.Counter()
    self._mark = Account(0.0, 0.0, 0.0, 0, 0, 0)

  def mark(self) -> None:
    """Here the next stage begins."""
    self._mark = self.read()

  def since_mark(self) -> Account:
    """The account of the stage so far."""
    return self.read() - self._mark

  def read(self) -> Account:
    """The account since the start."""
    busy = sum(end - start for start, end in self._busy)
    return Account(
        seconds=time.perf_counter() - self._start,
        tracing=busy - self._compiling,
        compiling=self._compiling,
        programs=self._events[_COMPILING],
        read=self._events[_CACHE + "cache_hits"],
        written=self._events[_CACHE + "cache_misses"],  # told when it writes
    )

  def __enter__(self) -> "Meter":
    jax.monitoring.register_event_listener(self._count)
    jax.monitoring.register_event_duration_secs_listener(self._time)
    return self

  def __exit__(self, *_: object) -> None:
    jax.monitoring.unregister_event_listener(self._count)
    jax.monitoring.unregister_event_duration_listener(self._time)

  def _count(self, event: str, **_: Any) -> None:
    self._events[event] += 1

  def _time(self, event: str, seconds: float, **_: Any) -> None:
    """Spans are told when they end, and one may lie within another."""
    if event not in (*_TRACING, _COMPILING):
      return
    end = time.perf_counter()
    start = end - seconds
    if event == _COMPILING:
      self._events[event] += 1
      self._compiling += seconds
    while self._busy and self._busy[-1][1] > start:
      start = min(start, self._busy.pop()[0])
    self._busy.append((start, end))
