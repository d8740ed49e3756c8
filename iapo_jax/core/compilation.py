"""The cache of compiled programs, and the time that compiling takes.

JAX can write compiled programs to a folder and read them at the next start. A
program is found again if its operations, options, versions and kind of device
(a CPU's instruction set included) are the same. Cached programs are executed:
such a folder must be as trusted as the code.

JAX 0.11 and later also cache programs that call the host (`reward.grader =
host`); earlier versions compile these at every start.
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
  """Returns the cache folder: JAX_COMPILATION_CACHE_DIR if set, else `folder`.

  Returns None, for no cache, if there is neither, or if the user has set
  JAX_ENABLE_COMPILATION_CACHE=false.
  """
  if not jax.config.jax_enable_compilation_cache:
    return None
  own = jax.config.jax_compilation_cache_dir
  return own or (str(folder) if folder else None)


def keeps_host_calls() -> bool:
  """Returns whether this JAX version caches programs that call the host."""
  return jax.__version_info__ >= (0, 11)


@contextlib.contextmanager
def kept(folder: pathlib.Path | None) -> Iterator[None]:
  """Uses a folder as the compilation cache of this process, all threads.

  Changes nothing if `folder` is None or the user has set JAX's cache folder.
  An unreadable file gives a warning and is written again. JAX makes the folder
  when it compiles the first program.
  """
  if folder is None or jax.config.jax_compilation_cache_dir:
    yield
    return
  cache = {
      # Absolute, since the process may change its working directory.
      "jax_compilation_cache_dir": str(folder.resolve()),
      # By default JAX skips programs that compile in under a second. These are
      # most programs of a small model, and on a busy machine they differ from
      # start to start. A run has about twenty programs; small ones take a few
      # kilobytes.
      "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  with _mending(folder.resolve()):
    try:
      with settings(**cache):
        compilation_cache.reset_cache()  # JAX would keep its first folder.
        yield
    finally:
      compilation_cache.reset_cache()


@contextlib.contextmanager
def unkept() -> Iterator[None]:
  """Writes and reads no compilation cache, even if the user has set one."""
  try:
    with settings(jax_enable_compilation_cache=False):
      compilation_cache.reset_cache()  # JAX looks at the setting only once.
      yield
  finally:
    compilation_cache.reset_cache()


@contextlib.contextmanager
def settings(**values: Any) -> Iterator[None]:
  """Sets values of `jax.config` and restores the old ones at exit."""
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
  """Lowers a jitted program for arguments (or their types) without tracebacks.

  Scope names are kept. With tracebacks, the TPU compiler (libtpu 0.0.42)
  compares the stacks of nested programs each time it needs a loop's trip
  count. That takes minutes for a step, and for some steps it does not end.
  """
  with settings(jax_traceback_in_locations_limit=0):
    return program.lower(*arguments)


@contextlib.contextmanager
def _mending(folder: pathlib.Path) -> Iterator[None]:
  """Removes cache files that JAX cannot read, so that it writes them again.

  JAX never overwrites a file: without this, a damaged one would fail at every
  start. JAX's warning names only the program, so this removes all files of
  that program.
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
          f"warning: {str(folder)!r}: the cached program {found[1]} cannot be"
          " read; compiling and caching it again",
          flush=True,
      )

    warnings.showwarning = remove
    yield


@dataclasses.dataclass(frozen=True)
class Account:
  """Time and counts of compiling in a span of time.

  Attributes:
    seconds: length of the span.
    tracing: seconds spent on turning Python functions into programs.
    compiling: seconds spent on compiling programs or reading cached ones.
    programs: number of programs compiled or read.
    read: number of programs read from the cache.
    written: number of programs written to the cache.
  """

  seconds: float
  tracing: float
  compiling: float
  programs: int
  read: int
  written: int

  def __sub__(self, before: "Account") -> "Account":
    """Returns the account of the time since an earlier account."""
    return Account(*(
        getattr(self, f.name) - getattr(before, f.name)
        for f in dataclasses.fields(self)
    ))

  @property
  def was_read(self) -> bool:
    """Whether all programs, at least one, came from the cache."""
    return 0 < self.programs == self.read

  def origin(self, *, calls_host: bool) -> str:
    """Describes where a program came from and whether it is now cached."""
    if self.was_read:
      return "read from the cache"
    if self.written:
      return "kept for the next start"
    if calls_host and not keeps_host_calls():
      return "cannot be kept: it calls the host"
    return "not kept"


class Meter:
  """A context manager that counts JAX's compilation events and times them."""

  def __init__(self, start: float) -> None:
    """Starts an account at a time of `time.perf_counter`."""
    self._start = start
    self._busy: list[tuple[float, float]] = []
    self._compiling = 0.0
    self._events: collections.Counter[str] = collections.Counter()
    self._mark = Account(0.0, 0.0, 0.0, 0, 0, 0)

  def mark(self) -> None:
    """Starts the next stage."""
    self._mark = self.read()

  def since_mark(self) -> Account:
    """Returns the account since the last `mark`."""
    return self.read() - self._mark

  def read(self) -> Account:
    """Returns the account since the start."""
    busy = sum(end - start for start, end in self._busy)
    return Account(
        seconds=time.perf_counter() - self._start,
        tracing=busy - self._compiling,
        compiling=self._compiling,
        programs=self._events[_COMPILING],
        read=self._events[_CACHE + "cache_hits"],
        # JAX records a miss when it writes the program.
        written=self._events[_CACHE + "cache_misses"],
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
    """Adds a span that ends now; it may contain earlier ones."""
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
